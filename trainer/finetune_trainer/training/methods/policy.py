"""What the methods have in common that generate answers to prompts and learn from their rewards."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import TokenizedConversation
from finetune_trainer.data.prompt_rows import detect_prompt_format, parse_prompt_row
from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_schema import TokenColumns
from finetune_trainer.data.row_types import Row
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods.base import Collator, TrainingMethod
from finetune_trainer.training.steps import count_prompts_per_step

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.training.methods.policy_trainer import PolicyTrainer
    from finetune_trainer.training.rewards import RewardScorer
    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)


class PolicyMethod(TrainingMethod):
    """A method that generates several answers to each prompt and compares their rewards."""

    token_columns: Mapping[str, str] = {"prompt_ids": "ids"}
    beta_applies = False
    measures_loss = False
    default_beta: float
    """Weight of the divergence from the reference model if `rollout.beta` is unset, as in TRL."""

    def resolve_beta(self, config: TrainerConfig) -> float:
        """Return the weight of the divergence from the reference model."""
        beta = config.training.effective_rollout.beta
        return self.default_beta if beta is None else beta

    def copies_adapter(self, config: TrainerConfig) -> bool:
        """A new adapter equals the base model, and without a weight there is no reference model."""
        is_kept = config.model.adapter_uri is not None and config.training.reference == "initial"
        return is_kept and self.resolve_beta(config) > 0

    def detect_format(self, row: Mapping[str, Any]) -> str:
        return detect_prompt_format(row)

    def parse_row(self, row: RowColumns, row_format: str) -> list[Row]:
        return [parse_prompt_row(row, row_format)]

    def build_columns(self, _: Row, conversations: Sequence[TokenizedConversation]) -> TokenColumns | str:
        conversation = conversations[0]
        prompt = conversation.input_ids[: conversation.answer_start]
        # Without room for the answer, truncation has cut off the end of the prompt.
        if not prompt or conversation.answer_start > len(conversation.input_ids):
            return "noSupervisedTokens"
        return TokenColumns({"prompt_ids": prompt}, len(prompt), 0)

    def build_collator(self, inputs: TrainerInputs) -> Collator:
        raise TypeError(f"{self.name} generates its batches")

    def build_trainer(self, inputs: TrainerInputs) -> TokenizedTrainer:
        from finetune_trainer.training.dropout import disable_dropout
        from finetune_trainer.training.rewards import RewardScorer
        from finetune_trainer.training.trl_arguments import build_common_arguments

        config, prepared = inputs.config, inputs.prepared
        if prepared.texts is None:
            raise ValueError("the texts of the prompts were not kept")
        self._check_prompt_count(config, len(prepared.dataset))
        if config.training.lora.dropout:
            log.warning("%s: dropout is disabled, so training.lora.dropout has no effect", self.name)
        disable_dropout(inputs.loaded.model)  # answers would be those of another model than the one that learns
        scorer = RewardScorer(
            config.training, config.evaluation, prepared.dataset, prepared.texts, inputs.loaded.tokenizer
        )
        arguments = build_common_arguments(config, len(prepared.dataset), inputs.work_dir)
        trainer = self.create_trainer(inputs, {**arguments, **self._build_arguments(config, scorer)}, scorer)
        trainer.use_prompts(prepared.dataset, scorer)
        return trainer

    @abstractmethod
    def create_trainer(self, inputs: TrainerInputs, arguments: dict[str, Any], scorer: RewardScorer) -> PolicyTrainer:
        """Return TRL's trainer with these arguments, on the rows of `list_prompts`."""

    def _build_arguments(self, config: TrainerConfig, scorer: RewardScorer) -> dict[str, Any]:
        rollout = config.training.effective_rollout
        return {
            "beta": self.resolve_beta(config),
            "num_generations": rollout.generations,
            "max_completion_length": rollout.max_new_tokens,
            "temperature": rollout.temperature,
            "reward_weights": scorer.weights,
        }

    def _check_prompt_count(self, config: TrainerConfig, row_count: int) -> None:
        """Raise `DATASET_EMPTY` if there are fewer prompts than a step needs."""
        needed = count_prompts_per_step(config.training, topology.world_size())
        if row_count < needed:
            message = (
                f"a step of method {self.name} needs {needed} prompts, but there are {row_count}; add rows, raise "
                "training.rollout.generations or lower gradientAccumulation"
            )
            raise TrainerError(Reason.DATASET_EMPTY, message)


def list_prompts(rows: datasets.Dataset) -> datasets.Dataset:
    """Return a dataset with the number of each row as its `prompt`: TRL hands it to the functions that need the row."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [str(number) for number in range(len(rows))]})
