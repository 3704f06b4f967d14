"""Group relative policy optimization (Shao et al., 2024, https://arxiv.org/abs/2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.training.methods.policy import PolicyMethod, list_prompts

if TYPE_CHECKING:
    from finetune_trainer.training.methods.policy_trainer import TokenizedGRPOTrainer
    from finetune_trainer.training.rewards import RewardScorer
    from finetune_trainer.training.state import TrainerInputs

_LOSS_ARGUMENTS: dict[str, dict[str, Any]] = {
    "drGrpo": {"loss_type": "dr_grpo"},
    # TRL clamps the weights of tokens to this value, whose default of 0.2 is that of another meaning. See the
    # documentation of `epsilon_high`: 5.0 in https://arxiv.org/abs/2510.13786
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
}
"""TRL's arguments by `training.lossType`, where they are more than its name."""


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
        loss_arguments = _LOSS_ARGUMENTS.get(loss_type, {"loss_type": loss_type})
        return TokenizedGRPOTrainer(
            **inputs.trainer_arguments,
            args=GRPOConfig(**arguments, **loss_arguments),
            reward_funcs=scorer.build_functions(),
            train_dataset=list_prompts(inputs.prepared.dataset),
        )
