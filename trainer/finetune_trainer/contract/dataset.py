"""The part of `TrainerConfig` that says what to train on, and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import NO_PARENT, SHORT_IN_BYTES, Model, S3Uri, cel_rules

FieldName = Literal[
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "label",
]
"""The names that the formats know their columns by."""
ColumnName = Annotated[str, StringConstraints(pattern=r"^[\p{L}\p{N}_ ./:-]+$", min_length=1, max_length=32)]
GroupCategory = Literal["gender", "age", "race", "religion"]
SensitiveKind = Literal["email", "phone", "creditCard", "iban", "ipAddress", "secret"]


class DataSource(Model):
    """One place that rows are read from."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            NO_PARENT,
            SHORT_IN_BYTES,
        )
    )

    uri: S3Uri
    """An object (`s3://bucket/key.jsonl`), a prefix that ends in `/`, or a glob (`s3://bucket/data/**/*.jsonl`). Files
    are `.jsonl`, `.json` (one array of objects), `.csv` or `.parquet`, each also with `.gz` or `.zst`."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "promptCompletion", "text", "preference"] = "auto"
    """`messages`: a list of `{role, content}`. `sharegpt`: `conversations`, a list of `{from, value}`. `alpaca`:
    `instruction`, `input`, `output`. `promptCompletion`: `prompt`, `completion`. `text`: plain `text`. `preference`:
    `prompt`, `chosen`, `rejected`, or for kto also `prompt`, `completion`, `label`. `auto`: told by the keys of each
    object's first row."""
    fields: dict[FieldName, ColumnName] = Field(default={}, max_length=6)
    """Columns that have other names than the format's: `{prompt: question, completion: answer}`."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Read at most this many rows, in the order of keys and lines. Absent means all."""


class Validation(Model):
    """Rows that are not trained on, to see what the model makes of new ones."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.fraction) != has(self.sources)", "exactly one of fraction and sources must be set"),
        )
    )

    fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Part of the prepared rows to set aside. Rows that resemble each other stay on one side."""
    sources: list[DataSource] | None = Field(default=None, min_length=1, max_length=4)
    """Places of their own. Training rows that also stand there are left out and counted as `leaked`."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of the choice by `fraction`."""


class Preparation(Model):
    """What is done to the rows before they are trained on. Every row is accounted for in `status.dataset`."""

    normalize_text: bool = True
    """Unicode to NFC, line breaks to `\\n`, control and invisible characters out."""
    deduplicate: Literal["none", "exact", "near"] = "exact"
    """`exact`: of equal rows the first is kept. `near`: also of rows that share most of their words (MinHash)."""
    near_threshold: float = Field(default=0.8, ge=0.5, le=1)
    """Share of common word sequences (Jaccard) from which rows resemble each other."""
    overlength: Literal["drop", "truncate", "fail"] = "drop"
    """What becomes of rows with more than `model.maxLength` tokens: left out, cut at the end, or the run fails."""
    min_tokens: int = Field(default=0, ge=0, le=1_048_576)
    """Rows with fewer tokens are left out and counted as `tooShort`."""
    max_invalid_fraction: float = Field(default=0, ge=0, le=1)
    """Part of the rows that may be unreadable. Up to it they are left out and counted as `invalid`, beyond it the run
    fails and names the first."""
    counterfactuals: list[GroupCategory] = Field(
        default=[], max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Against bias: also train on each row with the terms of these categories exchanged (he and she, old and young, …;
    English, some French). They are counted as `augmented`. With method sft only."""
    redact: list[SensitiveKind] = Field(default=[], max_length=6, json_schema_extra={"x-kubernetes-list-type": "set"})
    """Kinds of personal data and secrets to replace by a placeholder, such as `[EMAIL]`. All are counted anyway."""


class Dataset(Model):
    """What to train on."""

    sources: list[DataSource] = Field(min_length=1, max_length=16)
    """Read in this order."""
    validation: Validation | None = None
    """Rows that are not trained on. Absent means none."""
    preparation: Preparation = Preparation()
    """What is done to the rows before they are trained on."""
