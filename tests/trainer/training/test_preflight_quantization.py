"""Tests of the share of a base model that is quantized."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config
from tests.support.trainer.tiny_training import make_prepared_data

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.input_preparation import check_model
from finetune_trainer.inputs.base_model import FetchedModel
from finetune_trainer.inputs.resolve import DownloadedInputs
from finetune_trainer.modeling.loading import LoadedModel, load_base_model, load_model, load_tokenizer

if TYPE_CHECKING:
    from finetune_trainer.records.evaluation import PreflightFinding

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


def quantized_config(quantization: Literal["none", "int8", "nf4"], fraction: float = 0.9) -> TrainerConfig:
    settings = config({"precision": "fp32"})
    update = {"quantization": quantization, "min_quantized_fraction": fraction}
    return settings.model_copy(update={"model": settings.model.model_copy(update=update)})


def run_check(settings: TrainerConfig, model_dir: Path) -> list[PreflightFinding]:
    from finetune_trainer.training.preflight.quantization import check_quantization_coverage
    from finetune_trainer.training.state import TrainerInputs

    model = load_model(settings, model_dir, "transformers")
    loaded = LoadedModel(model, load_tokenizer(model_dir), "transformers")
    return check_quantization_coverage(TrainerInputs(settings, loaded, make_prepared_data("sft"), model_dir))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantization_of_dense_model_is_complete(tmp_path: Path, quantization: Literal["int8", "nf4"]) -> None:
    [finding] = run_check(quantized_config(quantization), build(tmp_path))
    assert (finding.check, finding.status, finding.value) == ("quantization", "passed", 1)


def test_quantization_none_has_no_finding(tmp_path: Path) -> None:
    assert run_check(quantized_config("none"), build(tmp_path)) == []


def test_quantization_of_multimodal_model_counts_its_language_part(tmp_path: Path) -> None:
    """Two layers with four attention projections and three of the feed-forward part, without those for images."""
    from finetune_trainer.modeling.quantization import measure_quantization

    settings = quantized_config("nf4")
    base = load_base_model(settings, build_family(tmp_path, "gemma3"), "transformers")
    coverage = measure_quantization(settings, base)
    assert coverage.quantized == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert coverage.unquantized == {}


def test_quantization_without_experts_is_refused(tmp_path: Path) -> None:
    """An attention layer has 64*64*2 + 64*32*2 weights, the experts have 4*(64*256 + 128*64)."""
    model_dir = build_family(tmp_path, "mixtral")
    with pytest.raises(TrainerError) as caught:
        load_model(quantized_config("nf4"), model_dir, "transformers")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message == (
        "model.quantization nf4 covers 11.1% of the weights of linear layers and experts on this machine, less than "
        "model.minQuantizedFraction 0.9; mlp.experts.gate_up_proj (59.3%), mlp.experts.down_proj (29.6%) would stay "
        "unquantized; set model.quantization to none, or lower model.minQuantizedFraction if there is enough memory"
    )
    [finding] = run_check(quantized_config("nf4", fraction=0.1), model_dir)
    assert finding.status == "warning"
    assert finding.value == pytest.approx(12288 / (12288 + 98304))
    assert "mlp.experts.gate_up_proj (59.3%)" in finding.message


def check_files(settings: TrainerConfig, model_dir: Path) -> None:
    """Check a model without its weights, as run and plan do."""
    (model_dir / "model.safetensors").write_bytes(b"")
    check_model(settings, DownloadedInputs(FetchedModel(model_dir, "sha256:0", []), []), date(2026, 1, 1))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["mixtral", "granitemoehybrid", "jamba", "falcon"])
def test_check_model_quantization_is_counted_before_the_weights_are_loaded(
    tmp_path: Path, quantization: Literal["int8", "nf4"], family: str
) -> None:
    """The numbers are those of this model, as after loading it."""
    settings, model_dir = quantized_config(quantization), build_family(tmp_path, family, intermediate_size=96)
    with pytest.raises(TrainerError, match=f"quantization {quantization} covers") as after_loading:
        load_model(settings, model_dir, "transformers")
    with pytest.raises(TrainerError) as caught:
        check_files(settings, model_dir)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message == after_loading.value.message
    check_files(quantized_config(quantization, fraction=0), model_dir)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["granitemoehybrid:attention", "granitemoehybrid:dense", "jamba:dense", "gpt2"])
def test_check_model_quantization_of_dense_model_is_accepted(
    tmp_path: Path, quantization: Literal["int8", "nf4"], family: str
) -> None:
    check_files(quantized_config(quantization), build_family(tmp_path, family))
