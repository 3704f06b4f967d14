"""The loss in training and reports is the cross-entropy of the model's logits, in each model family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.model_families import build_family, cross_entropy
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import ROWS_BY_METHOD, RecordingReporter, RunTraining, make_prepared_data

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

TARGETS = {"lora": {"targetModules": ["q_proj", "v_proj"]}}
SINGLE_BATCH = {"maxSteps": 2, "batchSize": 8, "warmupRatio": 0, **TARGETS}
FALLBACK_MESSAGE = "TRL's chunked loss is"
FAMILIES = {
    # family, whether TRL's chunked loss is that of its logits
    "llama": True,
    "qwen3": True,
    "phi3": True,
    "gemma2": True,
    "cohere2": True,
    "mixtral": True,
    "qwen3_moe": True,
    "granite": False,
    "minicpm3": False,
    "granitemoehybrid": False,
}


@pytest.mark.parametrize(("family", "chunked"), FAMILIES.items(), ids=FAMILIES)
def test_loss_of_model_family_matches_its_logits(
    run: RunTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, chunked: bool
) -> None:
    targets = {"qkv_proj"} if family == "phi3" else {"q_b_proj"} if family == "minicpm3" else {"q_proj", "v_proj"}
    base = build_family(tmp_path / family, family)
    trained = run(base, validate=True, **SINGLE_BATCH | {"lora": {"targetModules": sorted(targets)}})
    expected = cross_entropy(base, dict(ROWS_BY_METHOD["sft"]))
    assert trained.metrics["baseEvalLoss"] == pytest.approx(expected, rel=1e-5)
    assert trained.losses[0] == pytest.approx(expected, rel=1e-5)
    assert trained.metrics["evalLoss"] < expected
    warnings = [message for message in caplog.messages if FALLBACK_MESSAGE in message]
    assert len(warnings) == (0 if chunked else 1)


def test_loss_of_folds_with_scaled_logits_matches_logits(run: RunTraining, tmp_path: Path) -> None:
    base = build_family(tmp_path / "granite", "granite")
    trained = run(base, validate=True, **SINGLE_BATCH, crossValidation={"folds": 2})
    assert trained.metrics["crossValidationLoss"] == pytest.approx(
        cross_entropy(base, dict(ROWS_BY_METHOD["sft"])), rel=0.1
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_loss_of_experts_is_independent_of_accumulation(run: RunTraining, tmp_path: Path, family: str) -> None:
    base = build_family(tmp_path / family, family)
    whole = run(base, **TARGETS, batchSize=4, gradientAccumulation=1)
    parts = run(base, **TARGETS, batchSize=1, gradientAccumulation=4)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_loss_of_preferences_excludes_router_loss(run: RunTraining, tmp_path: Path, method: str) -> None:
    base = build_family(tmp_path / "mixtral", "mixtral")
    trained = run(base, method=method, validate=True, **TARGETS, maxSteps=1)
    assert trained.metrics["baseEvalLoss"] == pytest.approx({"dpo": 0.693147, "kto": 0.5}[method], abs=1e-4)


def test_router_settings_of_base_model_are_kept(run: RunTraining, tmp_path: Path) -> None:
    trained = run(build_family(tmp_path / "mixtral", "mixtral"), **TARGETS, maxSteps=1)
    base_config = trained.model.get_base_model().config
    assert (base_config.output_router_logits, base_config.router_aux_loss_coef) == (True, 0.5)


def load_scaled_model(model_dir: Path, scale: float) -> LoadedModel:
    """The tiny model in a class that scales its logits, but not those that its loss is computed from."""
    from transformers import LlamaForCausalLM

    class ScaledLlama(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> object:
            output = super().forward(*args, **kwargs)
            if output.logits is not None:
                output.logits = output.logits * scale
            return output

    loaded = LoadedModel(load_model(config(), model_dir, "transformers"), load_tokenizer(model_dir), "transformers")
    loaded.model.get_base_model().__class__ = ScaledLlama
    return loaded


def test_loss_preflight_loss_not_of_logits_is_refused(model_dir: Path, tmp_path: Path) -> None:
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    loaded = load_scaled_model(model_dir, scale=20)
    with pytest.raises(TrainerError, match=r"loss for ScaledLlama is 5\.\d+, .* own logits is 10\.\d+") as caught:
        train(config(), loaded, make_prepared_data("sft"), TrainingSession(RecordingReporter()), tmp_path)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
