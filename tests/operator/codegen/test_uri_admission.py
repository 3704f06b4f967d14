"""The API server and the trainer accept the same URIs and names, and refuse others by the same sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.support.cluster.manifests import (
    PREPARATION,
    SOURCE,
    VALIDATION_SPLIT,
    Manifest,
    apply_changes,
    build_valid_manifest,
)
from tests.support.operator.api_server import KUBERNETES_VERSIONS
from tests.support.operator.namespace_harness import RequestRejected

from finetune_trainer.config.loader import find_broken_rules
from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

DATA_URI = f"{SOURCE}.uri"
HUB_DATA = {DATA_URI: "hf://datasets/a/b"}
ACCEPTED: list[dict[str, Any]] = [
    *(
        {DATA_URI: uri}
        for uri in (
            "s3://data/a b%20ü.jsonl", "s3://data/[ab].jsonl", "s3://data/a?b", "s3://data/" + "ü" * 506, "pvc://claim",
            "pvc://claim/", "pvc://claim/a/**/*.jsonl", "hf://datasets/a/b/", "hf://datasets/a/b@refs/convert/parquet/x",
            "hf://datasets/a/b@refs%2Fpr%2F1/x.csv",
        )
    ),
    *({**HUB_DATA, f"{SOURCE}.split": name, f"{SOURCE}.subset": name} for name in ("ü", "C#-all", "train[:10%]")),
    *({DATA_URI: uri, f"{SOURCE}.split": "test"} for uri in ("hf://datasets/a/b@v1", "hf://datasets/a/b@refs/pr/1/")),
    *({f"{SOURCE}.fields": {"prompt": name}} for name in ("Question (EN)", "ä/ö #1", "x" * 128, "\u200b")),
    *({"spec.model.uri": uri} for uri in ("hf://a/b", "pvc://claim", "s3://b00/m")),
    *({"spec.output.uri": uri} for uri in ("s3://out/a b", "s3://out/{namespace}/{name}/x")),
    {"spec.output.languages": ["en", "de"]},
]  # fmt: skip
REJECTED: list[tuple[dict[str, Any], str]] = [
    *(
        ({DATA_URI: uri}, "uri must be s3://bucket/key, hf://datasets/OWNER/NAME[@REVISION][/path] or pvc://claim/path")
        for uri in (
            "s3://data", "s3://data/", "s3:/x", "S3://data/x", "s3://Data/x", "gs://b/a", "hf://datasets/a", "./a", "a",
            "hf://datasets/a/b@", "hf://datasets/a/b@x@y", "hf://datasets/a b/c", "pvc://C/a", "file://a", "C:/a", " ",
        )
    ),
    ({DATA_URI: "https://huggingface.co/datasets/a/b"}, "is hf://datasets/OWNER/NAME, not the address of its page"),
    ({DATA_URI: "hf://a/b"}, "hf://OWNER/NAME is a model"),
    *(({DATA_URI: uri}, "a space at its start or end") for uri in (" s3://data/a", "s3://data/a ", r"C:\data\a.jsonl")),
    *(({DATA_URI: uri}, "must not contain '..'") for uri in ("s3://data/..", "hf://datasets/a/b@main/../x")),
    ({DATA_URI: "s3://data/" + "ü" * 510}, "must not be longer than 1024 bytes"),
    ({DATA_URI: "hf://datasets/a/b/*.csv", f"{SOURCE}.split": "test"}, "subset and split apply to hf://datasets/"),
    ({"spec.model.uri": "https://huggingface.co/a/b"}, "is hf://ORGANIZATION/NAME, not the address of its page"),
    ({"spec.model.uri": "a/b"}, "use hf://a/b for the model"),
    *(({"spec.model.uri": uri}, "in revision") for uri in ("hf://a", "hf://a/b/", "hf://a/b@main", "hf://datasets/a/b")),
    *(({"spec.model.uri": uri}, "uri must be hf://ORGANIZATION/NAME, s3://bucket") for uri in ("llama", "HF://a/b")),
    *(({"spec.model.adapterURI": uri}, "adapterURI must") for uri in ("hf://a/b", "s3://b00/../x", r"s3://b00/a\b")),
    *(({"spec.output.uri": uri}, "uri must be s3://bucket/prefix") for uri in ("s3://out", "s3://out/", "/tmp/x")),
    *(({"spec.output.uri": f"s3://out/{key}"}, "uri has a brace") for key in ("{", "}", "{names}", "{{name}}")),
    ({"spec.output.uri": "s3://out/a "}, "a space at its start or end"),
]  # fmt: skip
BASELINE = {"name": "last", "adapterURI": "s3://adapters/last"}
REJECTED_LISTS: list[dict[str, Any]] = [
    {"spec.output.languages": ["en", "en"]},
    {f"{PREPARATION}.redact": ["email", "email"]},
    {**VALIDATION_SPLIT, "spec.evaluation.baselines": [BASELINE, {**BASELINE, "adapterURI": "s3://adapters/first"}]},
]


def _list_trainer_errors(manifest: Manifest) -> str:
    try:
        return "\n".join(message for _, message in find_broken_rules(TrainerConfig.from_manifest(manifest)))
    except ValidationError as error:
        return str(error)


async def _read_admission_error(world: NamespaceHarness, manifest: Manifest) -> str:
    try:
        await world.call("POST", f"{world.path('finetunejobs')}?dryRun=All&fieldValidation=Strict", manifest)
    except RequestRejected as error:
        return str(json.loads(str(error))["message"])
    return ""


@pytest.mark.cluster
@pytest.mark.parametrize("kubernetes_version", KUBERNETES_VERSIONS)
async def test_api_server_and_trainer_accept_same_names(world: NamespaceHarness) -> None:
    for changes in ACCEPTED:
        manifest = apply_changes(build_valid_manifest(), changes)
        assert _list_trainer_errors(manifest) == "", changes
        assert await _read_admission_error(world, manifest) == "", changes


@pytest.mark.cluster
@pytest.mark.parametrize("kubernetes_version", KUBERNETES_VERSIONS)
async def test_api_server_and_trainer_refuse_by_same_sentence(world: NamespaceHarness) -> None:
    for changes, sentence in REJECTED:
        manifest = apply_changes(build_valid_manifest(), changes)
        assert sentence in _list_trainer_errors(manifest), changes
        assert sentence in await _read_admission_error(world, manifest), changes


@pytest.mark.cluster
@pytest.mark.parametrize("kubernetes_version", KUBERNETES_VERSIONS)
async def test_api_server_and_trainer_refuse_repeated_items(world: NamespaceHarness) -> None:
    for changes in REJECTED_LISTS:
        manifest = apply_changes(build_valid_manifest(), changes)
        assert "twice" in _list_trainer_errors(manifest), changes
        assert "Duplicate value" in await _read_admission_error(world, manifest), changes
