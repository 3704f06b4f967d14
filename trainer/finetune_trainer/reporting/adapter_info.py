"""Description of an adapter and of the settings of its run, as text for the reports."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_trainer.contract import Servable, TrainerConfig, Training
from finetune_trainer.formatting import format_duration, format_number
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.text import format_names


def parse_config(manifest: AdapterManifest) -> TrainerConfig:
    """Return the config of the run."""
    return TrainerConfig.model_validate(manifest.config)


def get_run_name(manifest: AdapterManifest) -> str:
    """Return the name of the FineTuneJob, or else the last part of the output's URI."""
    return manifest.job or parse_config(manifest).output.uri.rstrip("/").rpartition("/")[2]


def describe_training_length(config: TrainerConfig) -> str:
    """Return the configured length of the training: `3 epochs` or `200 steps`."""
    training = config.training
    return f"{training.epochs:g} epochs" if training.epochs is not None else f"{training.max_steps} steps"


def describe_adapter(config: TrainerConfig, adapter_info: AdapterInfo) -> str:
    """Describe the adapter in one phrase."""
    lora = config.training.lora
    return (
        f"{lora.variant}, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
        f"{format_names(list(adapter_info.target_modules))}; {adapter_info.trainable_parameters:,} trained "
        f"parameters, {adapter_info.total_parameters - adapter_info.trainable_parameters:,} frozen parameters"
    )


_BATCHING_NOTES = {"padded": "", "byLength": ", by length", "paddingFree": ", without padding", "packed": ", packed"}


def describe_step(training: Training) -> str:
    """Return the size of an optimizer step: `2 x 4 rows per step` on each device, or `8 rows per step on all
    devices`."""
    unit = _get_batch_unit(training)
    if training.global_batch_size is not None:
        return f"{training.global_batch_size} {unit} per step on all devices"
    return f"{training.batch_size} x {training.gradient_accumulation} {unit} per step"


def _get_batch_unit(training: Training) -> str:
    """Return what `batchSize` counts."""
    return "sequences" if training.effective_batching == "packed" else "rows"


def _describe_step_size(training: Training) -> str:
    if training.global_batch_size is not None:
        return f"{training.global_batch_size} on all devices, {training.batch_size} per forward pass"
    return f"{training.batch_size} x {training.gradient_accumulation} (batch x accumulation) per device"


def _describe_learning_rate(training: Training) -> str:
    warmup = f"{training.warmup_ratio:g}" if training.warmup_steps is None else f"{training.warmup_steps} steps"
    floor = f", at least {training.min_learning_rate_ratio:g} of it" if training.min_learning_rate_ratio else ""
    return f"{training.learning_rate:g}, {training.scheduler}, warm-up {warmup}{floor}"


def list_settings(
    config: TrainerConfig, adapter_info: AdapterInfo, manifest: AdapterManifest
) -> Iterator[tuple[str, str]]:
    """Yield name and value of each setting that affects the adapter."""
    training = config.training
    yield "Method", adapter_info.method_title + ("" if adapter_info.beta is None else f", beta {adapter_info.beta:g}")
    yield "Training length", describe_training_length(config)
    yield f"{_get_batch_unit(training).capitalize()} per step", _describe_step_size(training)
    yield "Learning rate", _describe_learning_rate(training)
    yield "Optimizer", training.optimizer
    yield "Weight decay", f"{training.weight_decay:g}"
    yield "Gradient clipping", f"norm at most {training.max_grad_norm:g}"
    yield "Loss on", "tokens of the answers" if training.loss == "completion" else "all tokens"
    yield "Maximum length", f"{config.model.max_length:,} tokens" + _BATCHING_NOTES[training.effective_batching]
    yield from _list_template_settings(config, manifest)
    yield "Adapter", describe_adapter(config, adapter_info)
    yield (
        "Base model weights",
        config.model.quantization if config.model.quantization != "none" else adapter_info.precision,
    )
    yield "Precision", adapter_info.precision
    yield "Backend", manifest.backend + (", kernels of Liger" if training.kernels == "liger" else "")
    yield "Seed", str(training.seed)


def _list_template_settings(config: TrainerConfig, manifest: AdapterManifest) -> Iterator[tuple[str, str]]:
    if config.model.chat_template_name is not None:
        yield "Chat template", f"{config.model.chat_template_name} of TRL"
    if arguments := config.model.chat_template_arguments:
        yield "Chat template arguments", ", ".join(f"{name}: {value}" for name, value in sorted(arguments.items()))
    if manifest.template_date is not None:
        yield "Date in the chat template", manifest.template_date.isoformat()


def list_timings(metrics: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Yield name and value of the numbers that the training reported."""
    if "steps" in metrics:
        yield "Optimizer steps", format_number(metrics["steps"])
    if "tokens" in metrics:
        yield "Training tokens", format_number(metrics["tokens"])
    if "trainSeconds" in metrics:
        yield "Training time", format_duration(metrics["trainSeconds"])
    if "finalLoss" in metrics:
        yield "Training loss at the last step", format_number(metrics["finalLoss"])


def list_servers(servable: Servable | None) -> list[tuple[str, str]]:
    """Return the name of each inference server, and whether it loads the adapter. Older results do not say."""
    if servable is None:
        return []
    return [("vLLM", servable.vllm), ("llama.cpp, Ollama", servable.llama_cpp), ("PEFT", servable.peft)]
