"""Checks of the model itself before training: later tokens, dropout, and loading the adapter from its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import RunTraining, make_prepared_data

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

    from finetune_trainer.records.evaluation import PreflightFinding
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

NEW_LOSSES = {"dpo": 0.693147, "kto": 0.5}
DROPOUT_FAMILIES = [("llama", {"attention_dropout": 0.1}), ("seed_oss", {})]


def build_trainer(base: Path, folder: Path, **training: Any) -> tuple[TokenizedTrainer, Any]:
    from finetune_trainer.training import trl_trainer
    from finetune_trainer.training.state import TrainerInputs

    settings = config({"batchSize": 4, "lora": {"targetModules": ["q_proj", "v_proj"]}, **training})
    loaded = LoadedModel(load_model(settings, base, "transformers"), load_tokenizer(base), "transformers")
    inputs = TrainerInputs(settings, loaded, make_prepared_data(settings.training.method), folder)
    return trl_trainer.build_trainer(inputs), inputs


def run_preflight(base: Path, folder: Path, **training: Any) -> dict[str, PreflightFinding]:
    from finetune_trainer.training.preflight.runner import run_preflight

    return {finding.check: finding for finding in run_preflight(*build_trainer(base, folder, **training), lambda: None)}


@pytest.mark.parametrize("training", [{"batchSize": 1}, {"packing": True}, {"method": "dpo"}, {"precision": "bf16"}])
def test_preflight_model_that_sees_later_tokens_is_refused(tmp_path: Path, training: dict[str, Any]) -> None:
    base = build_family(tmp_path / "base", "gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(
        TrainerError, match=r"Gemma3ForCausalLM sees the tokens .* loss .* is \d+\.\d+, and \d+\.\d+ after the tokens"
    ) as caught:
        run_preflight(base, tmp_path, **training)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_preflight_model_that_sees_later_tokens_in_training_is_refused(model_dir: Path, tmp_path: Path) -> None:
    from finetune_trainer.training.preflight.runner import run_preflight

    trainer, inputs = build_trainer(model_dir, tmp_path)
    layer = trainer.model.get_base_model().model.layers[0]
    forward = layer.forward

    def forward_with_mean(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = forward(hidden + layer.training * hidden.mean(1, keepdim=True), *args, **kwargs)
        return result

    layer.forward = forward_with_mean
    recorded: list[PreflightFinding] = []
    with pytest.raises(TrainerError, match="LlamaForCausalLM sees the tokens that it predicts"):
        run_preflight(trainer, inputs, lambda: None, lambda findings: recorded.append(findings[-1]))
    assert {"positions", "vocabulary", "adapterReload"} <= {finding.check for finding in recorded}
    assert "causality" not in {finding.check for finding in recorded}


def test_preflight_causal_models_do_not_depend_on_later_tokens(tmp_path: Path) -> None:
    for family in ("qwen3_moe", "gemma3_text"):
        finding = run_preflight(build_family(tmp_path / family, family), tmp_path, precision="bf16")["causality"]
        assert (finding.status, finding.value) == ("passed", 0), family


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(("family", "shape"), DROPOUT_FAMILIES, ids=[family for family, _ in DROPOUT_FAMILIES])
def test_preference_training_disables_dropout_of_base_model(
    run: RunTraining, tmp_path: Path, family: str, shape: dict[str, float], method: str
) -> None:
    base = build_family(tmp_path / family, family, **shape)
    trained = run(base, method=method, batchSize=8, maxSteps=1, gradientCheckpointing=True, lora={"dropout": 0.1})
    assert trained.losses[0] == pytest.approx(NEW_LOSSES[method], abs=1e-5)
    assert trained.model.get_base_model().config.attention_dropout == 0.1, "a merged model keeps its settings"


def test_sft_keeps_dropout_of_base_model(run: RunTraining, tmp_path: Path) -> None:
    losses = [
        run(build_family(tmp_path / str(dropout), "llama", attention_dropout=dropout), maxSteps=1).losses[0]
        for dropout in (0.0, 0.5)
    ]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preflight_noise_of_preference_training_is_refused(tmp_path: Path, method: str) -> None:
    base = build_family(tmp_path / "mixtral", "mixtral", router_jitter_noise=0.3)
    with pytest.raises(
        TrainerError, match=rf"the {method} loss of a batch is 0\.\d+ in training mode and 0\.\d+ in evaluation"
    ) as caught:
        run_preflight(base, tmp_path, method=method)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_preflight_adapter_that_is_not_restored_is_refused(tmp_path: Path) -> None:
    """PEFT converts the names of Laguna's shared experts when it loads an adapter, and loses their weights."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    base = build_family(tmp_path / "laguna", "laguna", head_dim=16, shared_expert_intermediate_size=64, **experts)
    lost = r"1 of 4 modules of LagunaForCausalLM .*: model\.layers\.1\.mlp\.shared_experts\.up_proj; set .* q_proj$"
    with pytest.raises(TrainerError, match=lost) as caught:
        run_preflight(base, tmp_path, lora={"targetModules": ["q_proj", "up_proj"]})
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_preflight_reload_leaves_adapter_unchanged(model_dir: Path, tmp_path: Path, method: str) -> None:
    import torch

    from finetune_trainer.training.preflight.runner import run_preflight

    trainer, inputs = build_trainer(model_dir, tmp_path, method=method, lora={"trainableTokens": ["<|im_end|>"]})
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in trainer.model.named_parameters()}
    state, files = torch.get_rng_state(), sorted(tmp_path.iterdir())
    finding = {finding.check: finding for finding in run_preflight(trainer, inputs, lambda: None)}["adapterReload"]
    assert finding.value == sum(is_trained for _, is_trained in before.values())
    after = {name: (weight, weight.requires_grad) for name, weight in trainer.model.named_parameters()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name][0], before[name][0]) and after[name][1] == before[name][1] for name in before)
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.active_adapters == ["default"]
    assert sorted(tmp_path.iterdir()) == files
