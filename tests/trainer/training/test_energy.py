"""Energy is reported only if it was measured completely, on the GPUs of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytestmark = pytest.mark.training  # needs torch

KILOWATT_HOUR = 3_600_000_000


def make_reader(*readings: dict[str, int] | str) -> Callable[[], dict[str, int]]:
    """Return a reader that yields one reading per call. A string is the reason why a reading is unavailable."""
    from finetune_trainer.training.energy import EnergyUnavailable

    remaining: Iterator[dict[str, int] | str] = iter(readings)

    def read() -> dict[str, int]:
        reading = next(remaining)
        if isinstance(reading, str):
            raise EnergyUnavailable(reading)
        return reading

    return read


BEGUN = {"GPU-a": 7 * KILOWATT_HOUR, "GPU-b": 0}
READINGS: dict[str, tuple[list[dict[str, int] | str], float | None, str]] = {
    "two GPUs": (
        [BEGUN, {"GPU-a": 8 * KILOWATT_HOUR, "GPU-b": KILOWATT_HOUR // 2}],
        1500,
        "measured during training by the counters of 2 GPUs",
    ),
    "one GPU": ([{"GPU-a": 5}, {"GPU-a": 5}], 0, "measured during training by the counters of 1 GPU "),
    "the driver was reloaded": (
        [BEGUN, {"GPU-a": 3, "GPU-b": 9}],
        None,
        "not measured: the counter of a GPU was reset",
    ),
    "no counter at the start": (["no counter", {"GPU-a": 3}], None, "not measured: no counter"),
    "no counter at the end": ([BEGUN, "no counter"], None, "not measured: no counter"),
}


@pytest.mark.parametrize(("readings", "watt_hours", "message"), READINGS.values(), ids=READINGS)
def test_energy_meter_counters_give_watt_hours(
    readings: list[dict[str, int] | str], watt_hours: float | None, message: str
) -> None:
    from finetune_trainer.training.energy import EnergyMeter

    energy = EnergyMeter(make_reader(*readings)).measure()
    assert energy.watt_hours == pytest.approx(watt_hours)
    assert energy.message.startswith(message)


EARLIER: dict[str, tuple[float | None, float | None]] = {"measured": (250.0, 1250.0), "not measured": (None, None)}


@pytest.mark.parametrize(("earlier", "watt_hours"), EARLIER.values(), ids=EARLIER)
def test_energy_meter_adds_earlier_attempts(earlier: float | None, watt_hours: float | None) -> None:
    from finetune_trainer.training.energy import EnergyMeter

    meter = EnergyMeter(make_reader({"GPU-a": 0}, {"GPU-a": KILOWATT_HOUR}))
    meter.restore(earlier)
    assert meter.measure().watt_hours == pytest.approx(watt_hours)


def test_energy_meter_without_gpu_is_not_measured() -> None:
    from finetune_trainer.training.energy import EnergyMeter

    assert EnergyMeter().measure().message == "not measured: there is no GPU"
