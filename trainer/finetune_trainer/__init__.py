"""Fine-tunes a language model with LoRA: data and base model in, adapter out."""
