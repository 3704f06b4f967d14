"""TRL's trainers of methods that generate answers, on tokenized prompts. Imports TRL, so import it only after the
backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.generation import collect_end_token_ids
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.training.rewards import RewardScorer

_SIGNAL_STEPS = 20
"""Steps after which a training without a learning signal is ended."""
_MIN_SIGNAL_STEPS = 3
_MAX_FLAT_GROUPS = 0.95
"""Fraction of prompts whose answers all have the same reward, above which nearly nothing is learned."""


class EpochRepeatSampler(RepeatSampler):  # type: ignore[misc]  # TRL is published without types
    """TRL's sampler, whose order of an epoch depends on nothing but the seed and the number of the epoch.

    TRL draws the orders from one generator, so that a resumed training would begin with the order of the first epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Go to the order that TRL's sampler has in this epoch. accelerate calls it before each epoch."""
        self.generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=self.generator)


class LearningSignalCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Ends a training whose answers have equal rewards, because nothing is learned from them."""

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, float], **___: Any
    ) -> None:
        """Check the first steps. Raises `NO_LEARNING_SIGNAL`."""
        needed = max(min(_SIGNAL_STEPS, state.max_steps), _MIN_SIGNAL_STEPS)
        if "frac_reward_zero_std" in logs and state.global_step == needed:
            _check_signal(state, _MAX_FLAT_GROUPS)

    def on_train_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        """Check that the training has learned from any answer: otherwise the adapter is as it was before."""
        _check_signal(state, 1 - 1e-9)


def _check_signal(state: TrainerState, max_flat_share: float) -> None:
    """Raise `NO_LEARNING_SIGNAL` if more than this fraction of the prompts so far have answers of equal rewards."""
    entries = [entry for entry in state.log_history if "frac_reward_zero_std" in entry]
    flat = [float(entry["frac_reward_zero_std"]) for entry in entries]
    if flat and sum(flat) / len(flat) > max_flat_share:
        rewards = [float(entry["reward"]) for entry in entries if entry["reward"] is not None]
        raise _build_signal_error(sum(flat) / len(flat), rewards)


def _build_signal_error(flat_share: float, rewards: Sequence[float]) -> TrainerError:
    mean = f"{sum(rewards) / len(rewards):.3g}" if rewards else "unknown"
    return TrainerError(
        Reason.NO_LEARNING_SIGNAL,
        f"{flat_share:.0%} of the prompts have answers with equal rewards, of which nothing is learned; the mean "
        f"reward is {mean}. If it is near 0, the task is too hard for the model: train it with method sft first, use "
        "easier prompts, or add a grader that scores parts of an answer. If it is near its maximum, use harder "
        "prompts. Otherwise raise training.rollout.temperature or generations",
    )


class PolicyTrainer(TokenizedTrainer):
    """Generates answers to prompts in our tokens, ends them where the published model stops, and counts their tokens.

    A checkpoint is complete without the generated answers: they are generated for each step anew, because
    `steps_per_generation` is the gradient accumulation.
    """

    def use_prompts(self, rows: datasets.Dataset, scorer: RewardScorer) -> None:
        """Set the prompts, and the tokens that end an answer: TRL takes those of the model's generation config."""
        self._prompt_rows, self._scorer = rows, scorer
        self.eos_token_ids = collect_end_token_ids(self.model, scorer.tokenizer)
        self.generation_config.eos_token_id = self.eos_token_ids
        self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        self.add_callback(LearningSignalCallback())
        # TRL warns of an answer without a score with the texts of the row, which do not belong into the log of a run.
        for trainer_class in (GRPOTrainer, RLOOTrainer):
            logging.getLogger(trainer_class.__module__).setLevel(logging.ERROR)

    def set_heartbeat(self, heartbeat: Callable[[], None]) -> None:
        self._scorer.heartbeat = heartbeat

    def train(self, *args: Any, **kwargs: Any) -> object:
        """Train, and end the processes of the graders afterwards."""
        with self._scorer.graders:
            return super().train(*args, **kwargs)

    def count_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count nothing: the batch has prompts whose answers are not generated yet."""

    def _prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Generate the answers, and count their tokens as supervised."""
        inputs: dict[str, Any] = super()._prepare_inputs(batch)
        if self.model.training and "completion_mask" in inputs:
            attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            self.token_counter.add(
                {"attention_mask": attention_mask, "completion_mask": inputs["completion_mask"].bool()}
            )
        return inputs

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the tokens of the prompts as the data preparation has rendered them; TRL would apply the template."""
        return [self._prompt_rows[int(number)]["prompt_ids"] for number in prompts], None, {}

    def generate_answers(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Return the tokens of an answer to each prompt, as they are generated in the training."""
        answers: list[list[int]] = self._generate_single_turn(list(prompts), None, {}, 1)[0]
        return answers

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        """Return TRL's sampler, which can also begin with a later epoch."""
        return EpochRepeatSampler(
            self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
        )


class TokenizedGRPOTrainer(PolicyTrainer, GRPOTrainer):  # type: ignore[misc]  # TRL is published without types
    """TRL's trainer of GRPO."""


class TokenizedRLOOTrainer(PolicyTrainer, RLOOTrainer):  # type: ignore[misc]  # TRL is published without types
    """TRL's trainer of RLOO."""

    def generate_answers(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        answers: list[list[int]] = self._generate_single_turn(list(prompts), None, {})
        return answers
