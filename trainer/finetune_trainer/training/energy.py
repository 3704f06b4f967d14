"""Measures the energy use of the GPUs with their own counters. Imports torch, so import it only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pynvml
import torch

from finetune_trainer.distributed import collectives
from finetune_trainer.records.evaluation import EnergyUse

EnergyCounters = Mapping[str, int]
"""Millijoules since the driver was loaded, by UUID of the GPU."""

_MILLIJOULES_PER_WATT_HOUR = 3_600_000


class EnergyUnavailable(Exception):
    """The energy cannot be measured. The message gives the reason."""


class EnergyMeter:
    """Measures the energy use since its creation, plus that of earlier attempts."""

    def __init__(self, read_counters: Callable[[], EnergyCounters] | None = None) -> None:
        self._read_counters = read_counters or read_gpu_counters
        self._earlier_watt_hours = 0.0
        self._unavailable_reason = ""
        self._start_counters = self._try_read()

    def measure(self) -> EnergyUse:
        """Return the energy that all ranks used so far. A collective operation: all ranks must call it."""
        current = self._try_read()
        millijoules = {uuid: count - self._start_counters.get(uuid, count) for uuid, count in current.items()}
        if min(millijoules.values(), default=0) < 0:
            self._unavailable_reason = "the counter of a GPU was reset"
        local_watt_hours = self._earlier_watt_hours + sum(millijoules.values()) / _MILLIJOULES_PER_WATT_HOUR
        totals = torch.tensor([local_watt_hours, len(millijoules), bool(self._unavailable_reason)], dtype=torch.float64)
        watt_hours, gpus, missing = collectives.all_reduce_sum(totals).tolist()
        if missing:
            return EnergyUse(
                message=f"not measured: {self._unavailable_reason or 'another rank could not read its GPU'}"
            )
        return EnergyUse(watt_hours=watt_hours, message=_describe_coverage(int(gpus)))

    def restore(self, watt_hours: float | None) -> None:
        """Add the energy that earlier attempts used up to the checkpoint. Only rank 0 does this. None: not measured."""
        if watt_hours is None:
            self._unavailable_reason = self._unavailable_reason or "an earlier attempt could not measure it"
        else:
            self._earlier_watt_hours = watt_hours

    def _try_read(self) -> EnergyCounters:
        try:
            return self._read_counters()
        except EnergyUnavailable as error:
            self._unavailable_reason = str(error)
            return {}


def _describe_coverage(gpus: int) -> str:
    gpu_text = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return (
        f"measured during training by the counters of {gpu_text} (NVML), including earlier attempts up to the "
        "checkpoint that was resumed from; it covers complete GPUs, including other users of them, but not CPUs and "
        "other parts of the machine"
    )


def read_gpu_counters() -> EnergyCounters:
    """Return the counters of the GPUs that are visible to this process. Raises `EnergyUnavailable`."""
    if not torch.cuda.is_available():
        raise EnergyUnavailable("there is no GPU")
    try:
        pynvml.nvmlInit()
        try:
            return dict(_read_gpu_counter(index) for index in range(torch.cuda.device_count()))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise EnergyUnavailable(f"NVML error: {error}") from error


def _read_gpu_counter(index: int) -> tuple[str, int]:
    """Return UUID and counter. CUDA and NVML number the GPUs differently, and CUDA may hide some."""
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    if _is_mig_enabled(handle):
        raise EnergyUnavailable("the GPU is partitioned (MIG), and its counter covers all instances")
    return uuid, pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


def _is_mig_enabled(handle: object) -> bool:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)
