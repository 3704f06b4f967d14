"""What a tracker is told of a run, beside its metrics. Pure, but for the environment. Never the data's own text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune_trainer.contract import JOB_ENV, Outcome, TrainerConfig
from finetune_trainer.publishing.output_lock import run_id
from finetune_trainer.records.manifest import AdapterManifest

_PREFIX = "finetune."
RUN_TAG = f"{_PREFIX}runId"
"""All attempts of one FineTuneJob have the same."""
_TEXT = ("evaluation.samplePrompts", "evaluation.bias", "model.chatTemplate", "tracking")
"""Parts of the config that are prompts and the like, or of no interest."""


@dataclass(frozen=True)
class Described:
    """A run as people look for it among others."""

    id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def describe(config: TrainerConfig, digest: str) -> Described:
    """`digest` is that of config and workers."""
    uri = config.output.uri.rstrip("/")
    job = os.environ.get(JOB_ENV, "")
    namespace, _, name = job.partition("/")
    identifier = run_id()
    tags = {RUN_TAG: identifier, f"{_PREFIX}resultURI": uri, f"{_PREFIX}configDigest": digest}
    if job:
        tags |= {f"{_PREFIX}namespace": namespace, f"{_PREFIX}name": name}
    return Described(identifier, job or uri.rpartition("/")[2], dict(_flat(config.to_json())), tags)


def result_tags(manifest: AdapterManifest, ended: Outcome) -> dict[str, str]:
    """What is known at the end."""
    published = {f"{_PREFIX}resultDigest": ended.result.digest} if ended.result else {}
    return {
        **published,
        f"{_PREFIX}modelRevision": manifest.model.revision,
        f"{_PREFIX}dataDigest": manifest.dataset.digest,
    }


def _flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if path in _TEXT:
        return
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}.{index}")
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
