"""Checks of a step before training: padding, accumulation and gradients, with each method and backend."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import RunTraining, make_prepared_data

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from finetune_trainer.records.evaluation import PreflightFinding
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

SPLIT_STEP = {"batchSize": 4, "gradientAccumulation": 2}
METHODS = ["sft", "dpo", "kto"]
MODEL_CHECKS = ["positions", "vocabulary", "adapterKeys", "adapterReload", "causality"]


class Preflight:
    """A trainer of a model that may be changed before its checks run."""

    def __init__(self, model_dir: Path, folder: Path, training: dict[str, Any]) -> None:
        from finetune_trainer.training import trl_trainer
        from finetune_trainer.training.state import TrainerInputs

        settings = config({"lora": {"targetModules": ["q_proj", "v_proj"], "dropout": 0.1}, **SPLIT_STEP, **training})
        model = load_model(settings, model_dir, "transformers")
        loaded = LoadedModel(model, load_tokenizer(model_dir), "transformers")
        self.inputs = TrainerInputs(settings, loaded, make_prepared_data(settings.training.method), folder)
        self.trainer: TokenizedTrainer = trl_trainer.build_trainer(self.inputs)

    @property
    def base_model(self) -> PreTrainedModel:
        return self.inputs.loaded.model.get_base_model()

    def run(self) -> dict[str, PreflightFinding]:
        from finetune_trainer.training.preflight.runner import run_preflight

        return {finding.check: finding for finding in run_preflight(self.trainer, self.inputs, lambda: None)}


@pytest.fixture
def make_preflight(model_dir: Path, tmp_path: Path) -> Callable[..., Preflight]:
    def make_preflight(base: Path = model_dir, **training: Any) -> Preflight:
        return Preflight(base, tmp_path, training)

    return make_preflight


def randomize_adapter(preflight: Preflight) -> None:
    """Make the model differ from its reference model."""
    import torch

    torch.manual_seed(0)
    for name, weight in preflight.inputs.loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


def mix_rows_of_batch(preflight: Preflight) -> None:
    """Make each token depend on the padding of its row."""
    layer = preflight.base_model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, *args, **kwargs: forward(
        hidden + hidden.mean(1, keepdim=True) * (len(hidden) > 1), *args, **kwargs
    )


def skip_adapter_of_last_layer(preflight: Preflight) -> None:
    layer = preflight.base_model.model.layers[-1].self_attn.q_proj
    layer.forward = layer.base_layer.forward


def ignore_token_count(preflight: Preflight) -> None:
    """Make the model return the mean loss of a batch in any case."""
    model = preflight.base_model
    forward = model.forward
    model.forward = lambda *args, num_items_in_batch=None, **kwargs: forward(*args, **kwargs)


def scale_step_loss(preflight: Preflight, factor: float) -> None:
    """Make the loss of steps, which needs gradients, differ from that of evaluations."""
    import torch

    model = preflight.base_model
    forward = model.forward

    def scaled_forward(*args: Any, **kwargs: Any) -> ModelOutput:
        output: ModelOutput = forward(*args, **kwargs)
        if torch.is_grad_enabled():
            output.loss = output.loss * factor
        return output

    model.forward = scaled_forward


@pytest.mark.parametrize("method", METHODS)
def test_preflight_findings_have_stable_order(make_preflight: Callable[..., Preflight], method: str) -> None:
    findings = make_preflight(method=method).run()
    split = [] if method == "kto" else ["accumulation"]  # its loss depends on the other rows of a batch
    assert list(findings) == [*MODEL_CHECKS, "loss", "padding", "gradients", *split]
    assert {finding.status for finding in findings.values()} == {"passed"}
    assert (findings["positions"].value, findings["positions"].expected) == (11, 512)


def test_preflight_single_row_steps_are_not_compared(make_preflight: Callable[..., Preflight]) -> None:
    findings = make_preflight(batchSize=1, gradientAccumulation=1).run()
    assert list(findings) == [*MODEL_CHECKS, "loss", "gradients"]


def test_preflight_small_last_batch_of_kto_is_warning(make_preflight: Callable[..., Preflight]) -> None:
    finding = make_preflight(method="kto", batchSize=7).run()["batches"]
    assert finding.status == "warning"
    assert "the last batch of an epoch has 1 of 8 rows" in finding.message


def test_preflight_single_row_of_kto_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight(method="kto")
    data = preflight.inputs.prepared
    preflight.inputs = replace(preflight.inputs, prepared=replace(data, dataset=data.dataset.select([0])))
    with pytest.raises(TrainerError, match="kto compares the rows of a batch, but there is 1 row; add rows") as caught:
        preflight.run()
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(("method", "new_loss"), [("dpo", 0.693147), ("kto", 0.5)])
def test_preflight_preference_loss_is_that_of_own_log_probs(
    make_preflight: Callable[..., Preflight], method: str, new_loss: float
) -> None:
    preflight = make_preflight(method=method, beta=0.5)
    assert preflight.run()["loss"].value == pytest.approx(new_loss, abs=1e-5)
    randomize_adapter(preflight)
    finding = preflight.run()["loss"]
    assert finding.value == pytest.approx(finding.expected, abs=1e-4)
    assert finding.value != pytest.approx(new_loss, abs=1e-2)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preflight_other_preference_loss_is_refused(make_preflight: Callable[..., Preflight], method: str) -> None:
    preflight = make_preflight(method=method, beta=0.5)
    randomize_adapter(preflight)
    vars(preflight.trainer)["beta"] = 1.5
    with pytest.raises(
        TrainerError, match=rf"the trainer's {method} loss for LlamaForCausalLM is 0\.\d+, but"
    ) as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    ("method", "reason"),
    [("sft", Reason.CONFIG_INVALID), ("dpo", Reason.MODEL_UNSUPPORTED), ("kto", Reason.MODEL_UNSUPPORTED)],
)
def test_preflight_model_that_reads_padding_is_refused(
    make_preflight: Callable[..., Preflight], method: str, reason: Reason
) -> None:
    preflight = make_preflight(method=method)
    mix_rows_of_batch(preflight)
    with pytest.raises(
        TrainerError, match=r"padding changes the .* is -?\d+\.\d+ .* and -?\d+\.\d+ for the same"
    ) as caught:
        preflight.run()
    assert caught.value.reason is reason


@pytest.mark.parametrize("method", METHODS)
def test_preflight_parameter_without_gradient_is_refused(make_preflight: Callable[..., Preflight], method: str) -> None:
    preflight = make_preflight(method=method)
    skip_adapter_of_last_layer(preflight)
    expected = (
        r"2 of 8 trained .* no gradient, .*: model\.layers\.1\.self_attn\.q_proj\.lora_A\.weight, .*targetModules"
    )
    with pytest.raises(TrainerError, match=expected) as caught:
        preflight.run()
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("method", METHODS)
def test_preflight_gradients_of_zero_are_refused(make_preflight: Callable[..., Preflight], method: str) -> None:
    preflight = make_preflight(method=method)
    for weight in preflight.base_model.parameters():
        if not weight.requires_grad:
            weight.data.zero_()
    with pytest.raises(TrainerError, match=r"the gradients of all 8 trained .* are 0 with a loss of \d") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_preflight_infinite_gradient_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    weight = next(weight for name, weight in preflight.trainer.model.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainerError, match=r"1 of 8 trained parameters .* not finite, with a loss of 5\.\d+") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.filterwarnings("ignore:.*gradient checkpointing")
def test_preflight_unsupported_checkpointing_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight(gradientCheckpointing=True)
    vars(preflight.base_model)["supports_gradient_checkpointing"] = False
    with pytest.raises(TrainerError, match=r"gradientCheckpointing: LlamaForCausalLM does not support .* to false"):
        preflight.run()


@pytest.mark.parametrize("method", METHODS)
def test_preflight_leaves_non_finite_loss_to_training(make_preflight: Callable[..., Preflight], method: str) -> None:
    preflight = make_preflight(method=method)
    preflight.base_model.model.norm.weight.data[0] = float("nan")
    assert list(preflight.run()) == ["positions", "vocabulary", "adapterKeys", "adapterReload"]


def test_preflight_failing_forward_pass_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    preflight.base_model.model.layers[0].mlp.forward = lambda hidden: hidden.unknown
    with pytest.raises(TrainerError, match=r"forward pass of LlamaForCausalLM .* fails \(AttributeError: ") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_preflight_forward_pass_that_fails_in_training_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    mlp = preflight.base_model.model.layers[0].mlp
    compute = mlp.forward
    mlp.forward = lambda hidden: hidden @ hidden if mlp.training else compute(hidden)
    with pytest.raises(TrainerError, match=r"forward pass .* fails \(RuntimeError: ") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_preflight_small_influence_of_packed_rows_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight(packing=True)
    layer = preflight.base_model.model.layers[0]
    forward = layer.forward
    # The first token of a sequence, of whatever row, has a small influence on all tokens.
    layer.forward = lambda hidden, *args, **kwargs: forward(hidden + 2e-3 * hidden[:, :1], *args, **kwargs)
    with pytest.raises(
        TrainerError, match=r"its tokens change by 0\.000\d+ nats .*training.packing to false"
    ) as caught:
        preflight.run()
    assert caught.value.reason is Reason.CONFIG_INVALID


def fail_backward_pass(preflight: Preflight) -> None:
    import torch

    class FailingBackward(torch.autograd.Function):
        @staticmethod
        def forward(_: object, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.clone()

        @staticmethod
        def backward(_: object, __: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no kernel for this operator on the 'CUDA' backend")

    mlp = preflight.base_model.model.layers[0].mlp
    compute = mlp.forward
    mlp.forward = lambda hidden: FailingBackward.apply(compute(hidden))


def fail_loss(preflight: Preflight) -> None:
    def compute_loss(*_: Any, **__: Any) -> None:
        raise KeyError("logits")

    vars(preflight.trainer)["compute_loss"] = compute_loss


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (fail_backward_pass, r"the backward pass of LlamaForCausalLM .* fails \(NotImplementedError: no kernel for "),
        (fail_loss, r"the loss of LlamaForCausalLM .* fails \(KeyError: 'logits'\); set other training.lora"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_preflight_failing_computation_is_refused(
    make_preflight: Callable[..., Preflight], method: str, fail: Callable[[Preflight], None], message: str
) -> None:
    preflight = make_preflight(method=method)
    fail(preflight)
    with pytest.raises(TrainerError, match=message) as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_preflight_failing_chunked_loss_is_replaced(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    compute = preflight.base_model.forward

    def fail_in_chunks(*args: Any, labels: object = None, **kwargs: Any) -> object:
        if labels is not None:  # TRL's chunked loss gets the labels
            raise AttributeError("last_hidden_state")
        return compute(*args, **kwargs)

    preflight.base_model.forward = fail_in_chunks
    finding = preflight.run()["loss"]
    assert finding.value == pytest.approx(finding.expected, rel=1e-5)
    assert preflight.trainer.args.loss_type == "nll"


def test_preflight_packed_rows_are_checked_in_a_step(make_preflight: Callable[..., Preflight]) -> None:
    import torch

    preflight = make_preflight(packing=True, batchSize=2)
    forward, shapes = preflight.base_model.forward, []

    def record_shape(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> object:
        if torch.is_grad_enabled() and position_ids is not None:
            shapes.append((len(position_ids), int((position_ids == 0).sum())))
        return forward(*args, position_ids=position_ids, **kwargs)

    preflight.base_model.forward = record_shape
    findings = preflight.run()
    assert list(findings)[5:] == ["packing", "loss", "padding", "gradients", "accumulation"]
    assert shapes == [(2, 4), *[(1, 1)] * 4], "sequences and rows of each batch: the whole step, then row by row"


@pytest.mark.parametrize(
    "message", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: unspecified launch failure"]
)
def test_preflight_failing_machine_is_no_defect_of_the_model(
    make_preflight: Callable[..., Preflight], message: str
) -> None:
    preflight = make_preflight()

    def fail(_: object) -> object:
        raise RuntimeError(message)

    preflight.base_model.model.layers[0].mlp.forward = fail
    with pytest.raises(RuntimeError, match=message):
        preflight.run()


def test_preflight_model_that_ignores_token_count_is_normalized(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    ignore_token_count(preflight)
    finding = preflight.run()["accumulation"]
    assert finding.status == "passed"
    assert finding.value == pytest.approx(finding.expected, rel=1e-5)


def test_preflight_small_accumulation_difference_is_warning(
    make_preflight: Callable[..., Preflight], caplog: pytest.LogCaptureFixture
) -> None:
    preflight = make_preflight()
    scale_step_loss(preflight, 1.02)
    finding = preflight.run()["accumulation"]
    assert finding.status == "warning"
    assert finding.expected
    assert finding.value == pytest.approx(1.02 * finding.expected, rel=1e-4)
    assert any("the loss of a step is" in record.message for record in caplog.records if record.levelname == "WARNING")


def test_preflight_large_accumulation_difference_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    scale_step_loss(preflight, 1.1)
    with pytest.raises(TrainerError, match=r"step is 6\.\d+ with 4 .* rows 5\.\d+; .*set it to 1") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def scale_gradient_of_batch(preflight: Preflight, factor: float) -> None:
    """Make the gradient, but not the loss, of several rows in one batch differ from that of the rows alone."""
    norm = preflight.base_model.model.norm
    forward = norm.forward

    def scaled_forward(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.requires_grad and len(hidden) > 1:
            hidden.register_hook(lambda gradient: gradient * factor)
        output: torch.Tensor = forward(hidden)
        return output

    norm.forward = scaled_forward


def test_preflight_small_gradient_difference_is_warning(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    scale_gradient_of_batch(preflight, 1.05)
    finding = preflight.run()["accumulation"]
    assert finding.status == "warning"
    assert "the gradient differs by 4.76%" in finding.message


def test_preflight_large_gradient_difference_is_refused(make_preflight: Callable[..., Preflight]) -> None:
    preflight = make_preflight()
    scale_gradient_of_batch(preflight, 1.5)
    with pytest.raises(TrainerError, match=r"gradient differs by 33\.33% from .*set it to 1") as caught:
        preflight.run()
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_preflight_leaves_no_trace(make_preflight: Callable[..., Preflight], method: str, checkpointing: bool) -> None:
    import numpy as np
    import torch

    preflight = make_preflight(method=method, gradientCheckpointing=checkpointing)
    model = preflight.trainer.model.train()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    forward = vars(model).get("forward")
    preflight.run()
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]  # type: ignore[index]
    assert all(module.training for module in model.modules())
    assert vars(model).get("forward") is forward
    assert all(weight.grad is None and torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


def test_loss_of_mean_loss_model_is_independent_of_accumulation(
    run: RunTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    # Gemma 4, Qwen3-VL and others declare this, and transformers then trains on a mean of means.
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    settings = {"lora": {"targetModules": ["q_proj", "v_proj"]}, "warmupRatio": 0, "maxSteps": 3}
    whole = run(**settings, batchSize=4, gradientAccumulation=1)
    parts = run(**settings, batchSize=1, gradientAccumulation=4)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_loss_of_padding_rows_alone_is_zero(make_preflight: Callable[..., Preflight]) -> None:
    import torch

    from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer

    trainer = make_preflight().trainer
    assert isinstance(trainer, TokenizedSFTTrainer)
    trainer.use_full_logits()
    trainer.normalize_mean_loss()
    batch = {"input_ids": [[0, 0]], "labels": [[-100, -100]], "attention_mask": [[1, 1]]}
    inputs = {name: torch.tensor(values) for name, values in batch.items()}
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(10))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert float(loss.detach()) == 0
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
