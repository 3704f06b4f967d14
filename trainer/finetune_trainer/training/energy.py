"""The energy that the run's GPUs took, by their own counters. Imports torch, so import this module only after the
backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pynvml
import torch

from finetune_trainer.distributed import collectives
from finetune_trainer.records.evaluation import Energy

Counters = Mapping[str, int]
"""Millijoules since the driver was loaded, by the GPU's UUID."""

_MILLIJOULES = 3_600_000
"""In a watt-hour."""


class NotMeasured(Exception):
    """Why there is no number."""


class Meter:
    """Counts from when it is made, beside what earlier attempts took."""

    def __init__(self, read: Callable[[], Counters] | None = None) -> None:
        self._read_counters = read or counters
        self._earlier = 0.0
        self._why = ""
        self._begun = self._read()

    def taken(self) -> Energy:
        """By all workers, up to now. All have to ask at once."""
        now = self._read()
        spent = {uuid: count - self._begun.get(uuid, count) for uuid, count in now.items()}
        if min(spent.values(), default=0) < 0:
            self._why = "a GPU's counter began anew"
        mine = self._earlier + sum(spent.values()) / _MILLIJOULES
        numbers = torch.tensor([mine, len(spent), bool(self._why)], dtype=torch.float64)
        watt_hours, gpus, missing = collectives.total(numbers).tolist()
        if missing:
            return Energy(message=f"not measured: {self._why or 'another worker could not read its GPU'}")
        return Energy(watt_hours=watt_hours, message=_covered(int(gpus)))

    def restore(self, watt_hours: float | None) -> None:
        """Go on, in one worker, from what was taken up to a checkpoint, if that attempt could say it."""
        if watt_hours is None:
            self._why = self._why or "an earlier attempt could not measure it"
        else:
            self._earlier = watt_hours

    def _read(self) -> Counters:
        try:
            return self._read_counters()
        except NotMeasured as error:
            self._why = str(error)
            return {}


def _covered(gpus: int) -> str:
    cards = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return (
        f"by the counters of {cards} (NVML), while training, with earlier attempts up to the checkpoint that was gone "
        "on from; of whole cards, whoever else used them; CPUs and the rest of the machine are not in it"
    )


def counters() -> Counters:
    """Of the GPUs that this process sees. Raises `NotMeasured`."""
    if not torch.cuda.is_available():
        raise NotMeasured("there is no GPU")
    try:
        pynvml.nvmlInit()
        try:
            return dict(_counter(index) for index in range(torch.cuda.device_count()))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise NotMeasured(f"NVML says: {error}") from error


def _counter(index: int) -> tuple[str, int]:
    """By UUID, since CUDA and NVML number the GPUs differently, and CUDA hides some."""
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    if _is_split(handle):
        raise NotMeasured("the GPU is split into instances (MIG), and its counter is of all of them")
    return uuid, pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


def _is_split(handle: object) -> bool:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)
