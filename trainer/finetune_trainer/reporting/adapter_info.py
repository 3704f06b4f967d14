"""What only the model itself knows of its adapter, and a run's settings in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.formatting import format_duration, format_number
from finetune_trainer.text import format_names


@dataclass(frozen=True)
class AdapterInfo:
    """Facts of a trained adapter, so that nothing here needs the model."""

    base_name: str
    """What PEFT and servers look for: a hub name without its scheme, else the URI."""
    trainable_parameters: int
    """Parameters that were trained."""
    total_parameters: int
    """Parameters of base and adapter together."""
    precision: str
    """`bf16`, `fp16` or `fp32`; never `auto`."""
    target_modules: tuple[str, ...]
    """The modules that got an adapter, as `adapter_config.json` names them."""
    method_title: str
    """The training method, such as `supervised fine-tuning`."""
    beta: float | None = None
    """`training.beta`, if the method depends on it."""


def parse_config(manifest: AdapterManifest) -> TrainerConfig:
    """The config as run."""
    return TrainerConfig.model_validate(manifest.config)


def describe_training_length(config: TrainerConfig) -> str:
    """`3 epochs` or `200 steps`, as it was asked for."""
    training = config.training
    return f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.max_steps} steps"


def describe_adapter(config: TrainerConfig, adapter_info: AdapterInfo) -> str:
    """The adapter in one sentence."""
    lora = config.training.lora
    return (
        f"{lora.variant}, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
        f"{format_names(list(adapter_info.target_modules))}; {adapter_info.trainable_parameters:,} trained "
        "parameters beside "
        f"{adapter_info.total_parameters - adapter_info.trainable_parameters:,} frozen ones"
    )


def list_settings(
    config: TrainerConfig, adapter_info: AdapterInfo, manifest: AdapterManifest
) -> Iterator[tuple[str, str]]:
    """Every setting that shapes the adapter, with its value."""
    training = config.training
    yield "Method", adapter_info.method_title + ("" if adapter_info.beta is None else f", beta {adapter_info.beta:g}")
    yield "Length", describe_training_length(config)
    yield "Rows per step", f"{training.batch_size} x {training.gradient_accumulation} (batch x accumulation) per device"
    yield "Learning rate", f"{training.learning_rate:g}, {training.scheduler}, warm-up {training.warmup_ratio:g}"
    yield "Weight decay", f"{training.weight_decay:g}"
    yield "Gradient norm", f"at most {training.max_grad_norm:g}"
    yield "Loss on", "the answers' tokens" if training.loss == "completion" else "all tokens"
    yield "Longest example", f"{config.model.max_length:,} tokens" + (", packed" if training.packing else "")
    yield "Adapter", describe_adapter(config, adapter_info)
    yield (
        "Base model held as",
        config.model.quantization if config.model.quantization != "none" else adapter_info.precision,
    )
    yield "Precision", adapter_info.precision
    yield "Backend", manifest.backend
    yield "Seed", str(training.seed)


def list_timings(metrics: dict[str, float]) -> Iterator[tuple[str, str]]:
    """What the training itself said."""
    if "steps" in metrics:
        yield "Optimizer steps", format_number(metrics["steps"])
    if "tokens" in metrics:
        yield "Tokens trained on", format_number(metrics["tokens"])
    if "trainSeconds" in metrics:
        yield "Training time", format_duration(metrics["trainSeconds"])
    if "finalLoss" in metrics:
        yield "Training loss of the last step", format_number(metrics["finalLoss"])
