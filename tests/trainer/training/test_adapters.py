"""Adapters of each kind on base models of each precision, and training that continues from one, by either backend."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

KINDS = [("lora", "none"), ("rslora", "none"), ("dora", "none"), ("lora", "nf4"), ("rslora", "nf4"), ("dora", "nf4")]


@pytest.mark.parametrize(
    ("backend", "variant", "quantization"),
    [
        *(("transformers", *kind) for kind in (*KINDS, ("lora", "int8"))),
        *(("unsloth", *kind) for kind in KINDS),
    ],
)
def test_adapter_variant_learns_and_continues(run: RunTraining, backend: str, variant: str, quantization: str) -> None:
    shape = {"maxSteps": 6, "backend": backend, "lora": {"variant": variant, "rank": 8}, "validate": True}
    trained = run(source={"quantization": quantization}, **shape)
    assert trained.metrics["evalLoss"] < 0.9 * trained.metrics["baseEvalLoss"]
    stored = str(trained.folder / "adapter")
    again = run(source={"quantization": quantization}, adapter=stored, **shape)
    assert again.metrics["baseEvalLoss"] == pytest.approx(trained.metrics["evalLoss"], abs=1e-4)


def test_unsloth_int8_on_cpu_is_refused(run: RunTraining) -> None:
    with pytest.raises(
        TrainerError, match=r"training\.backend unsloth loads no int8 model .* to transformers$"
    ) as caught:
        run(source={"quantization": "int8"}, backend="unsloth")
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_unsloth_length_beyond_positions_is_refused(run: RunTraining) -> None:
    with pytest.raises(TrainerError, match="maxLength is 1024, but Unsloth supports at most 512 tokens") as caught:
        run(source={"max_length": 1024}, backend="unsloth")
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, "training.lora.rank is 4, but that of the adapter at model.adapterURI is 16"),
        ({"alpha": 8}, "training.lora.alpha is 8"),
        ({"variant": "dora"}, "training.lora.variant is dora, .* is lora"),
        ({"targetModules": ["q_proj"]}, r"training.lora.targetModules is \['q_proj'\], .*'down_proj'"),
    ],
    ids=["rank", "alpha", "variant", "targets"],
)
def test_adapter_differing_from_config_is_refused(run: RunTraining, lora: dict[str, Any], message: str) -> None:
    trained = run(maxSteps=1)
    with pytest.raises(TrainerError, match=message) as caught:
        run(adapter=str(trained.folder / "adapter"), lora=lora)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_int8_base_model_log_stays_quiet(run: RunTraining, caplog: pytest.LogCaptureFixture) -> None:
    run(source={"quantization": "int8"}, maxSteps=1)
    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []
