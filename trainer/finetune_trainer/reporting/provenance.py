"""`provenance.json`: an in-toto Statement v1 with SLSA Provenance v1, for supply-chain tools.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.records.manifest import AdapterManifest, FileRecord, InputRecord, ModelRecord

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://finetune.dev/fine-tuning/v1"
"""Build type. It defines the meaning of the parameters: `config` is a `TrainerConfig`."""
BUILDER_ID = "https://finetune.dev/finetune-trainer/v1"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})$")
_COMMIT = re.compile(r"[0-9a-f]{40}$")


@dataclass(frozen=True)
class Builder:
    """Builder of the result, with the time of the build."""

    id: str = BUILDER_ID
    """URI of the builder that a reader of the statement has to trust."""
    run_id: str = ""
    """Identifier that all attempts of the run share."""
    image: str = ""
    """Container image, with its digest if that is known."""
    started_on: str = ""
    """Start time in the format of RFC 3339."""
    finished_on: str = ""
    """End time in the format of RFC 3339. If it is empty, `manifest.created_at` is used."""


def build_statement(manifest: AdapterManifest, subjects: Sequence[FileRecord], builder: Builder) -> dict[str, Any]:
    """Build the statement that `builder` made the `subjects` from the inputs in the manifest, ready for JSON."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": record.path, "digest": {"sha256": record.sha256}} for record in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"config": manifest.config},
                "internalParameters": _build_internal_parameters(manifest),
                "resolvedDependencies": list(_list_dependencies(manifest, builder)),
            },
            "runDetails": {
                "builder": {"id": builder.id, "version": dict(_select_own_version(manifest.versions))},
                "metadata": _build_metadata(manifest, builder),
            },
        },
    }


def _build_internal_parameters(manifest: AdapterManifest) -> dict[str, Any]:
    """Return what the trainer decided itself, and the digests of config and data."""
    return {
        "apiVersion": manifest.api_version,
        "backend": manifest.backend,
        "configDigest": manifest.config_digest,
        "datasetDigest": manifest.dataset.digest,
        "seeds": dict(_collect_seeds(manifest.config)),
    }


def _collect_seeds(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _collect_seeds(value, f"{prefix}{key}.")
        elif key == "seed":
            yield f"{prefix}{key}", value


def _list_dependencies(manifest: AdapterManifest, builder: Builder) -> Iterator[dict[str, Any]]:
    yield from (_describe_object(record, "data") for record in manifest.inputs)
    yield _describe_model(manifest.model)
    yield from (_describe_object(record, "model") for record in manifest.model.files)
    yield from ({"uri": f"pkg:pypi/{name}@{version}"} for name, version in manifest.versions.items())
    if builder.image:
        yield _describe_image(builder.image)


def _describe_object(record: InputRecord, role: str) -> dict[str, Any]:
    digest = {"digest": {"sha256": record.sha256}} if record.sha256 else {}
    etag = {"etag": record.etag} if record.etag else {}
    return {"uri": record.uri, **digest, "annotations": {"role": role, "size": record.size, **etag}}


def _describe_model(model: ModelRecord) -> dict[str, Any]:
    """Describe the base model. The revision is a commit for a model of a hub, otherwise the digest of its files."""
    digest = _parse_digest(model.revision)
    if _COMMIT.match(model.revision):
        digest = {"digest": {"gitCommit": model.revision}}
    return {"uri": model.uri, **digest, "annotations": {"role": "baseModel", "revision": model.revision}}


def _describe_image(image: str) -> dict[str, Any]:
    return {"uri": f"docker://{image}", **_parse_digest(image), "annotations": {"role": "trainerImage"}}


def _parse_digest(text: str) -> dict[str, Any]:
    match = _DIGEST.search(text)
    return {"digest": {"sha256": match[1]}} if match else {}


def _select_own_version(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if "finetune-operator" in versions:
        yield "finetune-operator", versions["finetune-operator"]


def _build_metadata(manifest: AdapterManifest, builder: Builder) -> dict[str, str]:
    fields = {
        "invocationId": builder.run_id,
        "startedOn": builder.started_on,
        "finishedOn": builder.finished_on or manifest.created_at,
    }
    return {key: value for key, value in fields.items() if value}
