"""Runs the phases of a small run on the CPU, and compares the bytes of live tensors with the prediction of `plan`.

Attention on a CPU runs in PyTorch's fused kernel, which stores no scores, like those on GPUs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.tiny_model import config, tokenizer

from finetune_trainer.contract import DatasetReport, Evaluation, Output, TrainerConfig

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import LoadedModel
    from finetune_trainer.training.memory_needs import MemoryEstimate

STEPS = 2
"""The moments of the optimizer are created in the first step."""
NEW_TOKENS = 16


@dataclass(frozen=True)
class MemoryCase:
    """A model and a training."""

    name: str
    family: str = "llama"
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Values of the model's config."""
    training: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "none"
    tokens: int = 256
    """Tokens of each row."""
    pads: bool = False
    """Whether every fourth row has half as many tokens, so that batches have padding."""
    merges: bool = False

    @property
    def config(self) -> TrainerConfig:
        fixed = {"gradientAccumulation": 2, "maxSteps": STEPS, "warmupRatio": 0}
        base = config({**fixed, **self.training}, self.tokens)
        model = base.model.model_copy(update={"quantization": self.quantization})
        updates = {
            "model": model,
            "evaluation": Evaluation(sample_prompts=["Which lamp?"], max_new_tokens=NEW_TOKENS),
            "output": Output(uri=base.output.uri, merged=self.merges),
        }
        return base.model_copy(update=updates)

    def build_model(self, folder: Path) -> Path:
        import torch
        from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

        families = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
        own_tokenizer = tokenizer()
        sizes = {
            "vocab_size": 2000,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "pad_token_id": own_tokenizer.pad_token_id,
            "eos_token_id": own_tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        shape = families[self.family](**sizes | dict(self.sizes))
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(folder)
        own_tokenizer.save_pretrained(folder)
        return folder

    def prepare(self) -> PreparedData:
        import datasets

        from finetune_trainer.data.preparation import PreparedData

        count = 2 * STEPS * self.config.training.batch_size
        report = DatasetReport(rows=count, kept=count, rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0")
        return PreparedData(dataset=datasets.Dataset.from_dict(self._make_columns(count)), report=report)

    def _make_columns(self, count: int) -> dict[str, list[list[int]]]:
        def make_ids(start: int, length: int) -> list[list[int]]:
            lengths = [length // 2 if self.pads and row % 4 == 3 else length for row in range(count)]
            return [[10 + (start + row + index) % 400 for index in range(each)] for row, each in enumerate(lengths)]

        if self.config.training.method == "sft":
            return {"input_ids": make_ids(0, self.tokens), "labels": make_ids(0, self.tokens)}
        half = self.tokens // 2
        return {name: make_ids(start, half) for start, name in enumerate(("prompt_ids", "chosen_ids", "rejected_ids"))}


@dataclass(frozen=True)
class PhasePeak:
    """The peak of a phase in bytes, without the context of a GPU."""

    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def compare_phases(case: MemoryCase, folder: Path) -> dict[str, PhasePeak]:
    """Return the peak of each phase: load, training, losses, answers, export."""
    from finetune_trainer.modeling import backends
    from finetune_trainer.training.memory_needs import CONTEXT_BYTES

    backends.import_backend("transformers", case.quantization)
    measured = _measure(case, case.build_model(folder / "model"), folder)
    predicted = predict(case, folder / "model")
    return {name: PhasePeak(vars(predicted)[name] - CONTEXT_BYTES, peak) for name, peak in measured.items()}


def predict(case: MemoryCase, model_dir: Path) -> MemoryEstimate:
    """Return the prediction for rows of `tokens` tokens."""
    from finetune_trainer.planning.model_shape import compute_model_shape
    from finetune_trainer.training.memory_needs import estimate_memory

    return estimate_memory(case.config, compute_model_shape(case.config, model_dir))


def _measure(case: MemoryCase, model_dir: Path, folder: Path) -> dict[str, int]:
    from tests.support.trainer.tensor_memory import TensorCounter

    from finetune_trainer.modeling import loading

    counter, peaks = TensorCounter(), {}
    with counter.phase():
        loaded = loading.load_with_tokenizer(case.config, model_dir, "transformers")
    counter.add_all(loaded.model)
    peaks["load"] = counter.peak
    for name, work in _list_phases(case, loaded, model_dir, folder):
        gc.collect()
        with counter.phase():
            work()
        peaks[name] = max(peaks.get(name, 0), counter.peak)
    return peaks


def _list_phases(
    case: MemoryCase, loaded: LoadedModel, model_dir: Path, folder: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    from finetune_trainer.publishing import export, merge

    settings, prepared = case.config, case.prepare()
    yield "training", lambda: _train(settings, loaded, prepared, folder)
    yield "evaluation", lambda: _evaluate(settings, loaded, case.tokens)
    yield "export", lambda: export.export_adapter(settings, loaded, folder / "adapter", "sha256:0", model_dir)
    if case.merges:
        yield "export", lambda: merge.merge_weights(loaded.model, lambda: None)


def _train(settings: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, folder: Path) -> None:
    from transformers import PrinterCallback

    from finetune_trainer.training import trl_trainer
    from finetune_trainer.training.state import TrainerInputs

    trainer = trl_trainer.build_trainer(TrainerInputs(settings, loaded, prepared, folder))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _evaluate(settings: TrainerConfig, loaded: LoadedModel, tokens: int) -> None:
    """Measure losses and generate answers, under autocast as on a GPU."""
    import torch

    from finetune_trainer.modeling.batch_limits import limit_loss_tokens
    from finetune_trainer.modeling.generation import TextGenerator
    from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses

    rows: Sequence[list[int]] = [[10 + (row + index) % 400 for index in range(tokens)] for row in range(8)]
    limit = limit_loss_tokens(settings, None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.training.precision == "bf16"):
        compute_losses(loaded.model, [LabeledTokens(row, row) for row in rows], lambda: None, limit)
        TextGenerator(loaded.model, loaded.tokenizer, NEW_TOKENS).generate(rows)
