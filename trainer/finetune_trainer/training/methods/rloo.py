"""REINFORCE leave-one-out (Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.training.methods.policy import PolicyMethod, list_prompts

if TYPE_CHECKING:
    from finetune_trainer.training.methods.policy_trainer import TokenizedRLOOTrainer
    from finetune_trainer.training.rewards import RewardScorer
    from finetune_trainer.training.state import TrainerInputs


class RLOO(PolicyMethod):
    """REINFORCE with the mean reward of the other answers to the same prompt as the baseline."""

    name = "rloo"
    title = "REINFORCE leave-one-out"
    default_beta = 0.05

    def create_trainer(
        self, inputs: TrainerInputs, arguments: dict[str, Any], scorer: RewardScorer
    ) -> TokenizedRLOOTrainer:
        from trl import RLOOConfig

        from finetune_trainer.training.methods.policy_trainer import TokenizedRLOOTrainer

        return TokenizedRLOOTrainer(
            **inputs.trainer_arguments,
            args=RLOOConfig(**arguments),
            reward_funcs=scorer.build_functions(),
            train_dataset=list_prompts(inputs.prepared.dataset),
        )
