"""A model as it is after training, without the training."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer


def load_tuned_model(settings: TrainerConfig, model_dir: Path) -> LoadedModel:
    """Return a model whose B matrices are not zero, as after training."""
    import torch

    model = load_model(settings, model_dir, "transformers")
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    return LoadedModel(model, load_tokenizer(model_dir), "transformers")
