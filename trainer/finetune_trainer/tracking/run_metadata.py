"""Metadata of a run for trackers. It never contains text of the data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune_trainer.config.run_id import get_run_id
from finetune_trainer.contract import JOB_ENV, Outcome, TrainerConfig
from finetune_trainer.records.manifest import AdapterManifest

_TAG_PREFIX = "finetune."
RUN_ID_TAG = f"{_TAG_PREFIX}runId"
"""Tag with the run ID, which all attempts of a FineTuneJob share."""
_EXCLUDED_FIELDS = ("evaluation.samplePrompts", "evaluation.bias", "model.chatTemplate", "tracking")
"""Fields of the config that contain prompts or similar texts, or are irrelevant."""


@dataclass(frozen=True)
class RunMetadata:
    """Name, parameters and tags with which a run is found among others."""

    run_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def build_run_metadata(config: TrainerConfig, digest: str) -> RunMetadata:
    """Build the metadata of a run. `digest` is that of config and number of ranks."""
    uri = config.output.uri.rstrip("/")
    job = os.environ.get(JOB_ENV, "")
    namespace, _, name = job.partition("/")
    run_id = get_run_id()
    tags = {RUN_ID_TAG: run_id, f"{_TAG_PREFIX}resultURI": uri, f"{_TAG_PREFIX}configDigest": digest}
    if job:
        tags |= {f"{_TAG_PREFIX}namespace": namespace, f"{_TAG_PREFIX}name": name}
    return RunMetadata(run_id, job or uri.rpartition("/")[2], dict(_flatten(config.to_json())), tags)


def build_result_tags(manifest: AdapterManifest, final_outcome: Outcome) -> dict[str, str]:
    """Build the tags that describe a published result."""
    published = {f"{_TAG_PREFIX}resultDigest": final_outcome.result.digest} if final_outcome.result else {}
    return {
        **published,
        f"{_TAG_PREFIX}modelRevision": manifest.model.revision,
        f"{_TAG_PREFIX}dataDigest": manifest.dataset.digest,
    }


def _flatten(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if path in _EXCLUDED_FIELDS:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}.{index}")
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
