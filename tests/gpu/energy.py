"""Run matrix products on the GPUs for 8 seconds, and compare EnergyMeter with the sampled power draw.

The results are written to energy.json in the folder given as argument.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pynvml
import torch

from finetune_trainer.training.energy import EnergyMeter

SECONDS = 8.0


def main(folder: Path) -> None:
    """Measure all GPUs that are visible to this process."""
    pynvml.nvmlInit()
    uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    matrices = [torch.randn(4096, 4096, device=f"cuda:{index}") for index in range(len(handles))]
    meter, started = EnergyMeter(), time.monotonic()
    joules, last = 0.0, started
    while last - started < SECONDS:
        for matrix in matrices:
            for _ in range(50):
                torch.mm(matrix, matrix)
            torch.cuda.synchronize(matrix.device)
        now = time.monotonic()
        joules += sum(map(pynvml.nvmlDeviceGetPowerUsage, handles)) / 1000 * (now - last)
        last = now
    energy = meter.measure()
    result = {
        "watt_hours": energy.watt_hours,
        "message": energy.message,
        "gpus": len(handles),
        "expected": joules / 3600,
    }
    print(json.dumps(result))
    (folder / "energy.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
