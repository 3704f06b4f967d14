"""Facts about a trained adapter that only the loaded model knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about a trained adapter, collected from the model so that the reports do not need the model."""

    base_name: str
    """Name of the base model for PEFT and servers: a hub name without its scheme, otherwise the URI."""
    trainable_parameters: int
    """Number of trained parameters."""
    total_parameters: int
    """Number of parameters of base model and adapter together."""
    precision: str
    """Precision of the training: `bf16`, `fp16` or `fp32`; never `auto`."""
    target_modules: tuple[str, ...]
    """Modules with an adapter, as named in `adapter_config.json`."""
    method_title: str
    """Name of the training method, such as `supervised fine-tuning`."""
    beta: float | None = None
    """`training.beta`, if the training method depends on it."""
