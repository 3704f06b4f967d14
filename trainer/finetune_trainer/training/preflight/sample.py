"""The rows that the checks before the first step use. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_outputs_to_fp32

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.distributed import topology
from finetune_trainer.modeling.likelihood import LabeledTokens
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training import packing
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.preflight.library_errors import translate_computation_errors
from finetune_trainer.training.tokenized_trainer import disable_gather

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.training.methods.base import Collator
    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

_MAX_ROWS = 4
"""Maximum number of rows that are compared."""
_MAX_PREFERENCE_ROWS = 2
"""For `dpo` and `kto`: each row is several sequences, and the reference model computes them too."""
_MAX_TOKENS_PER_ROW = 64
"""More tokens take up to 15 s for a tiny model with Mamba layers, whose implementation for CPUs is slow."""
_ROWS_PER_SEQUENCE = 2
"""With packing: rows in each sequence of a batch."""
_MAX_CANDIDATES = 64
"""The rows are selected among the first ones, because reading all rows takes long."""


@dataclass(frozen=True)
class Sample:
    """A few truncated rows of a training, of different lengths where possible, and what computes their loss."""

    trainer: TokenizedTrainer
    config: TrainerConfig
    rows: Sequence[Mapping[str, Any]]
    """Prepared rows in the columns of the training method, not packed."""
    collator: Collator
    """Makes a batch of rows, which it packs if the training does."""
    heartbeat: Callable[[], None]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch on the device of the model."""
        batch: dict[str, Any] = self.trainer._prepare_inputs(self.collator(rows))
        return batch

    def compute_loss(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Return the trainer's loss of the rows as one batch, as in an evaluation."""
        with self.translate_errors("loss"):
            loss = float(self.trainer.compute_loss(self.trainer.model, self.collate(rows)))
        self.heartbeat()
        return loss

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Put the base model into training mode. The outer model stays in evaluation mode, in which TRL records no
        metrics of the training."""
        self.trainer.model.get_base_model().train()
        try:
            yield
        finally:
            self.trainer.model.eval()

    def translate_errors(self, computation: str) -> AbstractContextManager[None]:
        """Translate errors of libraries into `MODEL_UNSUPPORTED`."""
        return translate_computation_errors(
            f"the {computation} of {self.model_class} with its adapter",
            Reason.MODEL_UNSUPPORTED,
            "set other training.lora.targetModules, or use another training.backend or base model",
        )

    @staticmethod
    def get_answer(row: Mapping[str, Any]) -> Sequence[int]:
        """Return the tokens of the first answer of a preference row."""
        answer: Sequence[int] = row[_list_answers(row)[0]]
        return answer

    @property
    def labeled_rows(self) -> list[LabeledTokens]:
        """The rows of `sft`."""
        return [LabeledTokens(row["input_ids"], row["labels"]) for row in self.rows]

    @property
    def model_class(self) -> str:
        """The class of the base model, for messages."""
        return type(self.trainer.model.get_base_model()).__name__

    @property
    def shares_sequences(self) -> bool:
        """Whether a sequence of the training has several rows."""
        dataset, sequences = self.trainer.train_dataset, self.sequences_per_batch
        if packing.ROWS_COLUMN in dataset.column_names and packing.shares_sequences(dataset):
            return True
        return sequences == 1 and self.config.training.batch_size > 1 and len(self.rows) > 1

    @property
    def sequences_per_batch(self) -> int:
        """The sequences of a batch of the training."""
        return 1 if _joins_batches(self.trainer) else self.config.training.batch_size

    @property
    def splits_steps(self) -> bool:
        """Whether a step consists of several batches, of this process or of other ranks."""
        return self.trainer.args.gradient_accumulation_steps > 1 or topology.world_size() > 1


def build_sample(trainer: TokenizedTrainer, inputs: TrainerInputs, heartbeat: Callable[[], None]) -> Sample:
    """Select and truncate rows. Together they are not longer than a batch of the training may be."""
    config, dataset = inputs.config, inputs.prepared.dataset
    method = get_method(config)
    sample = Sample(trainer, config, [], _build_collator(trainer, inputs), heartbeat)
    min_rows = 2 if sample.splits_steps else 1
    max_rows = _MAX_ROWS if method.uses_token_loss else _MAX_PREFERENCE_ROWS
    rows_per_sequence = _ROWS_PER_SEQUENCE if config.training.effective_batching == "packed" else 1
    row_count = min(len(dataset), max(config.training.batch_size * rows_per_sequence, min_rows), max_rows)
    rows = _select_rows(dataset, row_count)
    max_tokens = min(_MAX_TOKENS_PER_ROW, max(map(_count_tokens, rows)) * config.training.batch_size // row_count)
    # Rows of equal length would not be padded, so later ones are shorter: with 4 rows by up to 3/8.
    limits = [max(2, max_tokens * (2 * row_count - index) // (2 * row_count)) for index in range(row_count)]
    truncated = [_truncate_row(row, limit) for row, limit in zip(rows, limits, strict=True)]
    return Sample(trainer, config, truncated, sample.collator, heartbeat)


def _build_collator(trainer: TokenizedTrainer, inputs: TrainerInputs) -> Collator:
    if inputs.config.training.effective_batching not in ("packed", "paddingFree"):
        return get_method(inputs.config).build_collator(inputs)
    if _joins_batches(trainer):
        rows_per_sequence = _MAX_ROWS
    else:
        rows_per_sequence = _ROWS_PER_SEQUENCE if packing.shares_sequences(trainer.train_dataset) else 1
    return _PackedRowsCollator(inputs.loaded.tokenizer.pad_token_id, rows_per_sequence)


def _joins_batches(trainer: TokenizedTrainer) -> bool:
    """Return whether all rows of a batch are one sequence."""
    collator = trainer.data_collator
    if isinstance(collator, packing.PackingCollator):
        return collator.joins_sequences
    return isinstance(collator, packing.PaddingFreeCollator)


@dataclass(frozen=True)
class _PackedRowsCollator:
    """Packs the rows of a batch into sequences of a few rows."""

    pad_token_id: int
    rows_per_sequence: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        starts = range(0, len(rows), self.rows_per_sequence)
        return packing.collate_sequences(
            [rows[start : start + self.rows_per_sequence] for start in starts], self.pad_token_id
        )


@contextmanager
def evaluation_mode(trainer: TokenizedTrainer) -> Iterator[None]:
    """Disable dropout and gradients, use the precision of the training, and restore the random generators."""
    model = trainer.model
    was_training = model.training
    model.eval()
    try:
        autocast = trainer.compute_loss_context_manager()
        with torch.random.fork_rng(), torch.no_grad(), disable_gather(trainer), autocast, _return_fp32_logits(trainer):
            yield
    finally:
        model.train(was_training)
        trainer._metrics["eval"].clear()


@contextmanager
def _return_fp32_logits(trainer: TokenizedTrainer) -> Iterator[None]:
    """Convert the logits to 32 bits, as accelerate does from the first step on: TRL sums log-probabilities in the
    precision of the logits."""
    if not trainer.accelerator.native_amp:
        yield
        return
    model = trainer.model
    own_forward = vars(model).get("forward")
    model.forward = convert_outputs_to_fp32(model.forward)
    try:
        yield
    finally:
        del model.forward
        if own_forward is not None:
            model.forward = own_forward


def select_tolerance(config: TrainerConfig, tolerances: Mapping[str, float]) -> float:
    """Return the tolerance for the precision of the run. `int8` of bitsandbytes rounds a row depending on its batch."""
    return tolerances["int8" if config.model.quantization == "int8" else resolve_precision(config)]


def _truncate_to_supervised(row: Mapping[str, Any], max_tokens: int) -> LabeledTokens:
    """Return at most `max_tokens` tokens of a row, up to the last supervised one."""
    input_ids, labels = row["input_ids"], row["labels"]
    end = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    start = max(0, end - max_tokens)
    return LabeledTokens(input_ids[start:end], [IGNORE_INDEX, *labels[start + 1 : end]])


def _select_rows(dataset: datasets.Dataset, row_count: int) -> list[dict[str, Any]]:
    """Return rows from the longest to the shortest one of the first rows; of `kto`, of both labels."""
    candidates = list(dataset.select(range(min(len(dataset), _MAX_CANDIDATES))))
    candidates.sort(key=lambda row: (row.get("label", True), _count_tokens(row)), reverse=True)
    last = len(candidates) - 1
    return [candidates[index * last // max(row_count - 1, 1)] for index in range(row_count)]


def _count_tokens(row: Mapping[str, Any]) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row[name]) for name in _list_answers(row))


def _list_answers(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of the answers of a preference row."""
    return [name for name in row if name.endswith("_ids") and name != "prompt_ids"]


def _truncate_row(row: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """Return a shorter row: the end of a prompt, and the start of its answers."""
    if "input_ids" in row:
        tokens = _truncate_to_supervised(row, max_tokens)
        return {"input_ids": tokens.input_ids, "labels": tokens.labels}
    prompt = row["prompt_ids"][-max(max_tokens // 2, 1) :]
    answers = {name: row[name][: max(max_tokens - len(prompt), 1)] for name in _list_answers(row)}
    return {**row, "prompt_ids": prompt, **answers}
