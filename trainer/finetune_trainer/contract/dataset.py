"""Dataset section of `TrainerConfig`: the training data and its preparation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import DATA_URI_RULES, NO_PARENT, SHORT_IN_BYTES, Model, Uri, cel_rules

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
    "tools",
    "history",
]
"""Names of the columns that the formats define."""
ColumnName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", min_length=1, max_length=128)]
GroupCategory = Literal["gender", "age", "race", "religion"]
HubName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", min_length=1, max_length=128)]
"""Name of a subset or split, such as `C#-all`."""
SensitiveKind = Literal["email", "phone", "creditCard", "iban", "nationalId", "ipAddress", "secret"]


class DataSource(Model):
    """DataSource is a location that rows are read from."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            *DATA_URI_RULES,
            NO_PARENT,
            SHORT_IN_BYTES,
            (
                "(!has(self.subset) && !has(self.split)) "
                "|| self.uri.matches('^hf://datasets/[^/]+/[^/@]+(@refs/(convert|pr)/[^/]+|@[^/]+)?/?$')",
                "subset and split apply to hf://datasets/OWNER/NAME without a path only",
            ),
        )
    )

    uri: Uri
    """uri is the location of the data. `s3://bucket/key.jsonl` is an object, `s3://bucket/data/` a prefix and
    `s3://bucket/data/**/*.jsonl` a glob. `hf://datasets/OWNER/NAME[@REVISION]` is a dataset of the Hugging Face hub,
    and with a path or a glob, some of its files. `pvc://claim/path` is a file, folder or glob on a volume claim, and
    `pvc://claim` all of it. Supported files are `.jsonl`, `.json` (one array of objects), `.csv`, `.tsv` and
    `.parquet`, each optionally compressed as `.gz` or `.zst`. Hidden and temporary files and files of other types in
    folders are left out. Without a cluster, local paths work too."""
    subset: HubName | None = None
    """subset is the name of a subset (configuration) of an `hf://` dataset. If unset, its default subset is used."""
    split: HubName | None = None
    """split is the name of a split of an `hf://` dataset. If unset, `train` is used."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "promptCompletion", "text", "preference"] = "auto"
    """format is the format of the rows. `messages`: a list of `{role, content}`, with optional `tools`. `sharegpt`:
    `conversations`, a list of `{from, value}`. `alpaca`: `instruction`, `input`, `output`, `history`.
    `promptCompletion`: `prompt`, `completion`, as texts or lists of turns. `text`: plain `text`. `preference`:
    `prompt`, `chosen`, `rejected`, or OpenAI's `input`, `preferred_output`, `non_preferred_output`, or for kto also
    `prompt`, `completion`, `label`. `auto`: detected from the keys of the first row of each object. Defaults to
    auto."""
    fields: dict[FieldName, ColumnName] = Field(default={}, max_length=8)
    """fields maps names of the format's columns to the names in the data, where they differ: `{prompt: question,
    completion: answer}`. A column that is named here but not used by the format is an error."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """limit is the maximum number of rows to read, in the order of keys and lines. If unset, all rows are read."""


class Validation(Model):
    """Validation configures rows that are held out from training, to measure the model on unseen data."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.fraction) != has(self.sources)", "exactly one of fraction and sources must be set"),
        )
    )

    fraction: float | None = Field(default=None, gt=0, le=0.5)
    """fraction is the fraction of the prepared rows to hold out. Similar rows are kept in the same split. Exactly one
    of `fraction` and `sources` must be set."""
    sources: list[DataSource] | None = Field(default=None, min_length=1, max_length=4)
    """sources are separate locations of validation rows. Training rows that also occur there are dropped and counted as
    `leaked`. Exactly one of `fraction` and `sources` must be set."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """seed is the random seed of the selection by `fraction`. Defaults to 42."""


class Preparation(Model):
    """Preparation configures how rows are cleaned and filtered before training. `status.dataset` accounts for every
    row."""

    normalize_text: bool = True
    """normalizeText converts text to Unicode NFC and line breaks to `\\n`, and removes control and invisible
    characters. Defaults to true."""
    deduplicate: Literal["none", "exact", "near"] = "exact"
    """deduplicate sets which duplicates are dropped. `exact` keeps the first of equal rows. `near` also drops rows that
    share most of their words with an earlier row (MinHash). Defaults to exact."""
    near_threshold: float = Field(default=0.8, ge=0.5, le=1)
    """nearThreshold is the minimum Jaccard similarity of the word sequences of two rows that are considered similar.
    Defaults to 0.8."""
    overlength: Literal["drop", "truncate", "fail"] = "drop"
    """overlength sets how rows with more than `model.maxLength` tokens are handled: `drop` drops the row, `truncate`
    cuts it at the end, and `fail` fails the run. Defaults to drop."""
    merge_turns: bool = False
    """mergeTurns joins consecutive turns of the same role by a blank line, for chat templates that need alternating
    roles. Defaults to false."""
    answers: Literal["all", "last"] = "all"
    """answers sets which turns of the assistant the loss is computed on: `all`, or only the `last` one of each row.
    Turns with `weight: 0` are never included. Defaults to all."""
    control_tokens: Literal["text", "control"] = "text"
    """controlTokens sets how control tokens that are typed in texts of the data, such as `<|im_end|>`, are encoded:
    as ordinary `text`, or as `control` tokens, as tokenizers do by default. The rows with such texts are counted.
    Defaults to text."""
    drop_echoes: bool = False
    """dropEchoes drops rows whose answer equals the message before it, and counts them as `echo`. Defaults to
    false."""
    min_tokens: int = Field(default=0, ge=0, le=1_048_576)
    """minTokens is the minimum length of a row, in tokens. Shorter rows are dropped and counted as `tooShort`. Defaults
    to 0."""
    max_invalid_fraction: float = Field(default=0, ge=0, le=1)
    """maxInvalidFraction is the fraction of the rows that may be invalid. Up to it, invalid rows are dropped and
    counted as `invalid`; above it, the run fails and reports the first ones. Defaults to 0."""
    max_rewritten_fraction: float = Field(default=0.01, ge=0, le=1)
    """maxRewrittenFraction is the fraction of the rows in which the chat template may remove or rewrite words of an
    answer. Up to it, such rows are trained as the template renders them and are counted in the report; above it, the
    run fails and shows an example. Defaults to 0.01."""
    counterfactuals: list[GroupCategory] = Field(
        default=[], max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """counterfactuals reduces bias by counterfactual data augmentation: for each of these categories, the model is also
    trained on a copy of each row in which the terms are swapped (he and she, old and young, …; English, some French).
    The copies are counted as `augmented`. It needs method sft."""
    redact: list[SensitiveKind] = Field(default=[], max_length=7, json_schema_extra={"x-kubernetes-list-type": "set"})
    """redact lists the kinds of personal data and secrets to replace by a placeholder, such as `[EMAIL]`. All kinds are
    counted, whether they are redacted or not."""


class Dataset(Model):
    """Dataset describes the training data and its preparation."""

    sources: list[DataSource] = Field(min_length=1, max_length=16)
    """sources are the locations of the training rows. They are read in this order."""
    validation: Validation | None = None
    """validation configures rows that are held out from training, to measure the model on unseen data. If unset, no
    rows are held out."""
    preparation: Preparation = Preparation()
    """preparation configures how rows are cleaned and filtered before training."""
