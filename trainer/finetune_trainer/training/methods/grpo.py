"""Group relative policy optimization (Shao et al., 2024, https://arxiv.org/abs/2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.training.methods.policy import PolicyMethod, list_prompts

if TYPE_CHECKING:
    from finetune_trainer.training.methods.policy_trainer import TokenizedGRPOTrainer
    from finetune_trainer.training.rewards import RewardScorer
    from finetune_trainer.training.state import TrainerInputs

_LOSS_TYPES = {"drGrpo": "dr_grpo"}
"""TRL's name by `training.lossType`, where they differ."""


class GRPO(PolicyMethod):
    """Group relative policy optimization: rewards are compared within the answers to a prompt."""

    name = "grpo"
    title = "group relative policy optimization"
    default_beta = 0.0

    def create_trainer(
        self, inputs: TrainerInputs, arguments: dict[str, Any], scorer: RewardScorer
    ) -> TokenizedGRPOTrainer:
        from trl import GRPOConfig

        from finetune_trainer.training.methods.policy_trainer import TokenizedGRPOTrainer

        loss_type = inputs.config.training.loss_type or "dapo"
        return TokenizedGRPOTrainer(
            **inputs.trainer_arguments,
            args=GRPOConfig(**arguments, loss_type=_LOSS_TYPES.get(loss_type, loss_type)),
            reward_funcs=scorer.build_functions(),
            train_dataset=list_prompts(inputs.prepared.dataset),
        )
