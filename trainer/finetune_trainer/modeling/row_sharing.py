"""The setting that makes rows share sequences, for messages."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.contract import Training


@dataclass(frozen=True)
class RowSharing:
    """The setting that makes rows share sequences."""

    field: str
    """The path of the field, such as `training.batching`."""
    value: str
    """The value of the field, or an empty text if the field has no other value with this effect."""
    alternatives: str
    """The values of the field with which each row is a sequence of its own, as a part of a sentence."""
    backend: str
    """The requested backend."""

    @property
    def setting(self) -> str:
        """The field with its value."""
        return f"{self.field} {self.value}".rstrip()

    @property
    def advice(self) -> str:
        """What to change if a model mixes rows that share a sequence."""
        backend_advice = ", or training.backend to transformers" if self.backend == "unsloth" else ""
        return f"set {self.field} to {self.alternatives}{backend_advice}"


def describe_row_sharing(training: Training) -> RowSharing | None:
    """Return the setting that makes rows share sequences, or None if each row is a sequence of its own."""
    if training.effective_batching not in ("packed", "paddingFree"):
        return None
    if training.batching is None:
        return RowSharing("training.packing", "", "false", training.backend)
    return RowSharing("training.batching", training.batching, "padded or byLength", training.backend)
