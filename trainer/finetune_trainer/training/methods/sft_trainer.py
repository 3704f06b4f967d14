"""TRL's trainer of supervised fine-tuning, on tokenized rows. Imports TRL, so import it only after the backend."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


class TokenizedSFTTrainer(TokenizedTrainer, SFTTrainer):  # type: ignore[misc]  # TRL is published without types
    """TRL's trainer, with a choice between two implementations of the loss, and a loss of each step that is the mean
    over all its supervised tokens."""

    model_accepts_loss_kwargs: bool
    """Whether the tokens of a step are counted and passed to `compute_loss`, an attribute of transformers' Trainer."""

    def __init__(self, **kwargs: Any) -> None:
        self._unpatched_forward = vars(kwargs["model"].get_base_model()).get("forward")
        super().__init__(**kwargs)
        # Gemma 4, Qwen3-VL and others declare that they ignore the number of tokens of the step.
        self._returns_mean_loss = not self.model_accepts_loss_kwargs
        self.model_accepts_loss_kwargs = True  # count the tokens, and do not divide by the number of batches

    def normalize_mean_loss(self) -> None:
        """Ask the model for the mean loss of each batch, and weight it with the supervised tokens of the batch. For
        models that ignore the number of tokens of the step, so that a step would be a mean of means."""
        self._returns_mean_loss = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of a batch, divided by the supervised tokens of the step if their number is passed.

        It is then multiplied by the number of ranks, as transformers does, because DDP averages their gradients.
        """
        if num_items_in_batch is None or not self._returns_mean_loss:
            loss: torch.Tensor | tuple[torch.Tensor, Any] = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
            return loss
        token_count = (inputs["labels"][..., 1:] != IGNORE_INDEX).sum()
        mean_loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        scaled_loss = mean_loss * (token_count * self.accelerator.num_processes / num_items_in_batch)
        # The mean over no tokens, of a batch of padding rows, is NaN.
        step_loss = torch.where(token_count > 0, scaled_loss, torch.zeros_like(scaled_loss))
        return (step_loss, outputs) if return_outputs else step_loss

    def use_full_logits(self) -> None:
        """Compute the loss from the model's logits (`nll`) instead of the weights of its output head (`chunked_nll`),
        for which TRL has replaced the `forward` of this model object."""
        base_model = self.model.get_base_model()
        if self._unpatched_forward is None:
            vars(base_model).pop("forward", None)
        else:
            base_model.forward = self._unpatched_forward
        self.args.loss_type = "nll"
