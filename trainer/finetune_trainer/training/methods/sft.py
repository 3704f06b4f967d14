"""Supervised fine-tuning: the cross-entropy of the supervised tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.formats import PARSERS, detect_example_format
from finetune_trainer.data.loss_masking import TokenizedConversation
from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_schema import TokenColumns
from finetune_trainer.data.row_types import Row
from finetune_trainer.distributed import topology
from finetune_trainer.modeling import kernels
from finetune_trainer.modeling.language_part import is_head_in_decoder
from finetune_trainer.training import packing
from finetune_trainer.training.batching import Batching, Lengths, measure_lengths, measure_padding
from finetune_trainer.training.methods.base import Collator, TrainingMethod, build_row_sampler

if TYPE_CHECKING:
    import datasets
    from trl import SFTConfig

    from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer
    from finetune_trainer.training.state import TrainerInputs

log = logging.getLogger(__name__)


class SFT(TrainingMethod):
    """Supervised fine-tuning on conversations, prompts with a completion, and plain text."""

    name = "sft"
    title = "supervised fine-tuning"
    token_columns: Mapping[str, str] = {"input_ids": "ids", "labels": "ids"}
    beta_applies = False
    uses_token_loss = True
    chunks_logits = True

    def detect_format(self, row: Mapping[str, Any]) -> str:
        return detect_example_format(row)

    def parse_row(self, row: RowColumns, row_format: str) -> list[Row]:
        return [PARSERS[row_format](row)]

    def build_columns(self, _: Row, conversations: Sequence[TokenizedConversation]) -> TokenColumns | str:
        conversation = conversations[0]
        if not conversation.supervised_tokens:
            return "noSupervisedTokens"
        columns = {"input_ids": conversation.id_array, "labels": conversation.label_array}
        return TokenColumns(columns, len(conversation.id_array), conversation.supervised_tokens)

    def build_collator(self, inputs: TrainerInputs) -> Collator:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        collator: Collator = DataCollatorForLanguageModeling(inputs.loaded.tokenizer.pad_token_id)
        return collator

    def build_trainer(self, inputs: TrainerInputs) -> TokenizedSFTTrainer:
        from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer

        rows, collator = self._arrange_rows(inputs)
        padded_rows, padding_row_count = _pad_rows(inputs, rows)
        trainer = TokenizedSFTTrainer(
            **inputs.trainer_arguments,
            args=_build_config(inputs, len(padded_rows)),
            train_dataset=padded_rows,
            data_collator=collator,
        )
        trainer.row_sampler = build_row_sampler(inputs, rows, padding_row_count)
        return trainer

    def _arrange_rows(self, inputs: TrainerInputs) -> tuple[datasets.Dataset, Collator]:
        """Return what batches are made of, rows or packed sequences, and the collator for it."""
        batching, rows = inputs.config.training.effective_batching, inputs.prepared.dataset
        lengths = measure_lengths(rows)
        _log_padding(inputs, lengths)
        if batching == "packed":
            return _pack_rows(inputs, lengths)
        if batching == "paddingFree":
            return rows, packing.PaddingFreeCollator(inputs.loaded.tokenizer.pad_token_id)
        return rows, self.build_collator(inputs)


def _build_config(inputs: TrainerInputs, row_count: int) -> SFTConfig:
    from trl import SFTConfig

    from finetune_trainer.training.trl_arguments import build_common_arguments

    is_loss_fused = kernels.fuses_loss(inputs.config, inputs.loaded.model.get_base_model())
    return SFTConfig(
        **build_common_arguments(inputs.config, row_count, inputs.work_dir),
        # The rows are prepared: TRL would truncate those longer than 1024 tokens and drop some without a message.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,  # the collator does it, without truncation
        padding_free=False,
        # The column with the rows of a packed sequence is needed.
        remove_unused_columns=inputs.config.training.effective_batching != "packed",
        loss_type="nll" if is_loss_fused else _choose_loss_type(inputs),
        # TRL then expects a loss without logits. Liger's kernels are in the model already; applied again, they change
        # nothing.
        use_liger_kernel=is_loss_fused,
        liger_kernel_config=kernels.list_liger_options(is_loss_fused),
    )


def _choose_loss_type(inputs: TrainerInputs) -> str:
    """Return TRL's loss without all logits at once, unless it would bypass Unsloth's own, or cannot read the output
    head because its tokens are trained or it is a part of the decoder. The preflight check compares it with the
    model's logits."""
    is_head_trained = bool(inputs.config.training.lora.trainable_tokens)
    needs_logits = is_head_trained or is_head_in_decoder(inputs.loaded.model.get_base_model())
    return "nll" if inputs.loaded.backend == "unsloth" or needs_logits else "chunked_nll"


def _log_padding(inputs: TrainerInputs, lengths: Lengths) -> None:
    training = inputs.config.training
    batching = training.effective_batching
    # The sequences of a batch are joined then, so none is padded.
    computed_as: Batching = "paddingFree" if batching == "packed" and _joins_sequences(inputs) else batching
    padding = measure_padding(lengths, training.batch_size, computed_as, inputs.config.model.max_length, training.seed)
    log.info("batching %s: %.1f %% of the computed tokens are padding", batching, 100 * padding.share)


def _pack_rows(inputs: TrainerInputs, lengths: Lengths) -> tuple[datasets.Dataset, Collator]:
    rows = inputs.prepared.dataset
    sequences = packing.pack_dataset(lengths, inputs.config.model.max_length)
    log.info(
        "packed %d rows into %d sequences (no truncation, no cross-attention between rows)", len(rows), len(sequences)
    )
    return sequences, packing.PackingCollator(rows, inputs.loaded.tokenizer.pad_token_id, _joins_sequences(inputs))


def _joins_sequences(inputs: TrainerInputs) -> bool:
    """Return whether the packed sequences of a batch become one, which is how Unsloth keeps rows apart."""
    return inputs.loaded.backend == "unsloth"


def _pad_rows(inputs: TrainerInputs, rows: datasets.Dataset) -> tuple[datasets.Dataset, int]:
    """Add padding rows so that all ranks have equal batches. A single process can take a smaller last batch."""
    from finetune_trainer.training.padding_rows import pad_dataset

    if topology.world_size() == 1:
        return rows, 0
    batch_size = inputs.config.training.batch_size * topology.world_size()
    return pad_dataset(rows, batch_size, inputs.loaded.tokenizer.pad_token_id)
