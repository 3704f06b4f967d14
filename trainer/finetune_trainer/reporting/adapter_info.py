"""What only the model itself knows of its adapter, and a run's settings in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.formatting import duration, number
from finetune_trainer.text import listing

METHODS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
}


@dataclass(frozen=True)
class AdapterFacts:
    """Facts of a trained adapter, so that nothing here needs the model."""

    base_name: str
    """What PEFT and servers look for: a hub name without its scheme, else the URI."""
    trainable: int
    """Parameters that were trained."""
    total: int
    """Parameters of base and adapter together."""
    precision: str
    """`bf16`, `fp16` or `fp32`; never `auto`."""
    target_modules: tuple[str, ...]
    """The modules that got an adapter, as `adapter_config.json` names them."""


def config_of(manifest: AdapterManifest) -> TrainerConfig:
    """The config as run."""
    return TrainerConfig.model_validate(manifest.config)


def training_length(config: TrainerConfig) -> str:
    """`3 epochs` or `200 steps`, as it was asked for."""
    training = config.training
    return f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.max_steps} steps"


def adapter_text(config: TrainerConfig, facts: AdapterFacts) -> str:
    """The adapter in one sentence."""
    lora = config.training.lora
    return (
        f"{lora.variant}, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
        f"{listing(list(facts.target_modules))}; {facts.trainable:,} trained parameters beside "
        f"{facts.total - facts.trainable:,} frozen ones"
    )


def settings(config: TrainerConfig, facts: AdapterFacts, manifest: AdapterManifest) -> Iterator[tuple[str, str]]:
    """Every setting that shapes the adapter, with its value."""
    training = config.training
    yield "Method", METHODS[training.method] + ("" if training.method == "sft" else f", beta {training.beta:g}")
    yield "Length", training_length(config)
    yield "Rows per step", f"{training.batch_size} x {training.gradient_accumulation} (batch x accumulation) per device"
    yield "Learning rate", f"{training.learning_rate:g}, {training.scheduler}, warm-up {training.warmup_ratio:g}"
    yield "Weight decay", f"{training.weight_decay:g}"
    yield "Gradient norm", f"at most {training.max_grad_norm:g}"
    yield "Loss on", "the answers' tokens" if training.loss == "completion" else "all tokens"
    yield "Longest example", f"{config.model.max_length:,} tokens" + (", packed" if training.packing else "")
    yield "Adapter", adapter_text(config, facts)
    yield "Base model held as", config.model.quantization if config.model.quantization != "none" else facts.precision
    yield "Precision", facts.precision
    yield "Backend", manifest.backend
    yield "Seed", str(training.seed)


def took(metrics: dict[str, float]) -> Iterator[tuple[str, str]]:
    """What the training itself said."""
    if "steps" in metrics:
        yield "Optimizer steps", number(metrics["steps"])
    if "tokens" in metrics:
        yield "Tokens trained on", number(metrics["tokens"])
    if "trainSeconds" in metrics:
        yield "Training time", duration(metrics["trainSeconds"])
    if "finalLoss" in metrics:
        yield "Training loss of the last step", number(metrics["finalLoss"])
