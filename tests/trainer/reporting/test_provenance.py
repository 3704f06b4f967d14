"""The provenance statement, parsed with the classes of in-toto."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import resource_descriptor_pb2, statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from tests.support.trainer import run_records

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.provenance import Builder, build_statement

DIGEST = "e" * 64
BUILDER = Builder(run_id="uid-1", image=f"registry.example/trainer@sha256:{DIGEST}", started_on="2026-03-04T03:00:00Z")


def make_statement(manifest: AdapterManifest, builder: Builder = BUILDER) -> dict[str, Any]:
    """Return the statement after a round trip through JSON."""
    return json.loads(json.dumps(build_statement(manifest, manifest.files, builder)))


def test_provenance_is_valid_in_toto_statement() -> None:
    statement = json_format.ParseDict(make_statement(run_records.make_manifest()), statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    assert [(subject.name, dict(subject.digest)) for subject in statement.subject] == [
        ("adapter_model.safetensors", {"sha256": "c" * 64})
    ]


def test_provenance_is_valid_slsa_predicate() -> None:
    predicate = make_statement(run_records.make_manifest())["predicate"]
    provenance = json_format.ParseDict(predicate, provenance_pb2.Provenance())
    for dependency in provenance.build_definition.resolved_dependencies:
        copied = resource_descriptor_pb2.ResourceDescriptor()
        copied.CopyFrom(dependency)
        ResourceDescriptor.copy_from_pb(copied).validate()
    details = provenance.run_details
    assert details.builder.id.startswith("https://")
    assert dict(details.builder.version) == {"finetune-operator": "0.1.0"}
    assert details.metadata.invocation_id == "uid-1"
    assert details.metadata.started_on.ToJsonString() == "2026-03-04T03:00:00Z"
    assert details.metadata.finished_on.ToJsonString() == "2026-03-04T05:06:07Z"


def test_provenance_records_config_and_seeds() -> None:
    definition = make_statement(run_records.make_manifest())["predicate"]["buildDefinition"]
    config = TrainerConfig.model_validate(definition["externalParameters"]["config"])
    assert config.digest() == definition["internalParameters"]["configDigest"]
    assert definition["internalParameters"]["seeds"] == {"dataset.validation.seed": 7, "training.seed": 11}


DEPENDENCIES = {
    "data": {
        "uri": "s3://data/support/a.jsonl",
        "digest": {"sha256": "b" * 64},
        "annotations": {"role": "data", "size": 5_000_000, "etag": '"e1"'},
    },
    "model": {
        "uri": "hf://org/base-1b",
        "digest": {"gitCommit": run_records.COMMIT},
        "annotations": {"role": "baseModel", "revision": run_records.COMMIT},
    },
    "model file": {
        "uri": "hf://org/base-1b/model.safetensors",
        "digest": {"sha256": "a" * 64},
        "annotations": {"role": "model", "size": 10**9},
    },
    "package": {"uri": "pkg:pypi/torch@2.14.1"},
    "image": {
        "uri": f"docker://{BUILDER.image}",
        "digest": {"sha256": DIGEST},
        "annotations": {"role": "trainerImage"},
    },
}


@pytest.mark.parametrize("expected", DEPENDENCIES.values(), ids=DEPENDENCIES)
def test_provenance_lists_each_dependency(expected: dict[str, Any]) -> None:
    assert (
        expected in make_statement(run_records.make_manifest())["predicate"]["buildDefinition"]["resolvedDependencies"]
    )


def test_provenance_unknown_facts_are_absent() -> None:
    predicate = make_statement(run_records.make_manifest(versions={}), Builder())["predicate"]
    assert predicate["runDetails"]["metadata"] == {"finishedOn": "2026-03-04T05:06:07Z"}
    assert not [
        dependency
        for dependency in predicate["buildDefinition"]["resolvedDependencies"]
        if "docker" in dependency["uri"]
    ]
    json_format.ParseDict(predicate, provenance_pb2.Provenance())
