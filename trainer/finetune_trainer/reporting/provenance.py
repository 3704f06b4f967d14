"""`provenance.json`: an in-toto Statement v1 with SLSA's provenance v1, which supply-chain tools read and sign.

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
"""Names the meaning of the parameters: `config` is a `TrainerConfig`."""
BUILDER_ID = "https://finetune.dev/finetune-trainer/v1"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})$")
_COMMIT = re.compile(r"[0-9a-f]{40}$")


@dataclass(frozen=True)
class Builder:
    """Who made it, and when."""

    id: str = BUILDER_ID
    """A URI that says whom one trusts when one believes the statement."""
    run_id: str = ""
    """What all attempts of the run have in common."""
    image: str = ""
    """The container image, with its digest where that is known."""
    started_on: str = ""
    """RFC 3339, as `finished_on`, which is `manifest.created_at` if it is empty."""
    finished_on: str = ""


def statement(manifest: AdapterManifest, subjects: Sequence[FileRecord], builder: Builder) -> dict[str, Any]:
    """That `builder` made the `subjects` from what the manifest says. JSON-ready."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": each.path, "digest": {"sha256": each.sha256}} for each in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"config": manifest.config},
                "internalParameters": _internal(manifest),
                "resolvedDependencies": list(_dependencies(manifest, builder)),
            },
            "runDetails": {
                "builder": {"id": builder.id, "version": dict(_own(manifest.versions))},
                "metadata": _metadata(manifest, builder),
            },
        },
    }


def _internal(manifest: AdapterManifest) -> dict[str, Any]:
    """What the config leaves to the trainer, and the digests that stand for config and data as a whole."""
    return {
        "apiVersion": manifest.api_version,
        "backend": manifest.backend,
        "configDigest": manifest.config_digest,
        "datasetDigest": manifest.dataset.digest,
        "seeds": dict(_seeds(manifest.config)),
    }


def _seeds(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _seeds(value, f"{prefix}{key}.")
        elif key == "seed":
            yield f"{prefix}{key}", value


def _dependencies(manifest: AdapterManifest, builder: Builder) -> Iterator[dict[str, Any]]:
    yield from (_object(each, "data") for each in manifest.inputs)
    yield _model(manifest.model)
    yield from (_object(each, "model") for each in manifest.model.files)
    yield from ({"uri": f"pkg:pypi/{name}@{version}"} for name, version in manifest.versions.items())
    if builder.image:
        yield _image(builder.image)


def _object(found: InputRecord, role: str) -> dict[str, Any]:
    digest = {"digest": {"sha256": found.sha256}} if found.sha256 else {}
    etag = {"etag": found.etag} if found.etag else {}
    return {"uri": found.uri, **digest, "annotations": {"role": role, "size": found.size, **etag}}


def _model(model: ModelRecord) -> dict[str, Any]:
    """The base model as a whole; a hub's revision is a commit, any other the digest of its files."""
    digest = _digest(model.revision)
    if _COMMIT.match(model.revision):
        digest = {"digest": {"gitCommit": model.revision}}
    return {"uri": model.uri, **digest, "annotations": {"role": "baseModel", "revision": model.revision}}


def _image(image: str) -> dict[str, Any]:
    return {"uri": f"docker://{image}", **_digest(image), "annotations": {"role": "trainerImage"}}


def _digest(text: str) -> dict[str, Any]:
    found = _DIGEST.search(text)
    return {"digest": {"sha256": found[1]}} if found else {}


def _own(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if "finetune-operator" in versions:
        yield "finetune-operator", versions["finetune-operator"]


def _metadata(manifest: AdapterManifest, builder: Builder) -> dict[str, str]:
    known = {
        "invocationId": builder.run_id,
        "startedOn": builder.started_on,
        "finishedOn": builder.finished_on or manifest.created_at,
    }
    return {key: value for key, value in known.items() if value}
