"""The CRD is a structural schema with the defaults, limits and rules of the classes. Generated files are up to date."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from finetune_operator.codegen import __main__ as generate
from finetune_operator.codegen.crd import DEFINITIONS, KindDefinition, build_crd, build_root_schema

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operator.builders import Builders
    from tests.support.operator.namespace_harness import NamespaceHarness

FORBIDDEN = {
    "$ref",
    "$defs",
    "anyOf",
    "oneOf",
    "const",
    "title",
    "examples",
    "propertyNames",
    "patternProperties",
    "nullable",
}


def _walk_schema(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, subschema in schema.get("properties", {}).items():
        yield from _walk_schema(subschema, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from _walk_schema(schema[key], f"{path}.{key}")


def _schema_at(path: str) -> dict[str, Any]:
    return dict(_walk_schema(build_root_schema()))[path]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.kind)
def test_crd_schema_is_structural(definition: KindDefinition) -> None:
    for path, schema in _walk_schema(build_root_schema(definition)):
        assert not FORBIDDEN & schema.keys(), path
        assert schema["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        for limit in ("exclusiveMinimum", "exclusiveMaximum"):
            assert schema.get(limit, True) is True, path


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.kind)
def test_crd_every_field_has_size_limit_and_description(definition: KindDefinition) -> None:
    for path, schema in _walk_schema(build_root_schema(definition)):
        if not path.startswith((".spec", ".status")):
            continue
        if schema["type"] == "string":
            assert "maxLength" in schema or "enum" in schema, path
        if schema["type"] == "array":
            assert "maxItems" in schema, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path
        if not path.endswith((".items", ".additionalProperties")):
            assert schema.get("description"), path


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.kind)
def test_crd_defaults_are_never_null(definition: KindDefinition) -> None:
    assert "null" not in json.dumps(build_crd(definition))


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.kind)
def test_crd_field_description_starts_with_name_and_ends_with_period(definition: KindDefinition) -> None:
    for path, schema in _walk_schema(build_root_schema(definition)):
        name = path.rpartition(".")[2]
        if path.startswith((".spec.", ".status.")) and name not in {"items", "additionalProperties"}:
            assert schema["description"].startswith(f"{name} "), path
            assert schema["description"].endswith("."), path


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.kind)
def test_crd_spec_description_states_scalar_default(definition: KindDefinition) -> None:
    for path, schema in _walk_schema(build_root_schema(definition)["properties"]["spec"]):
        default, description = schema.get("default"), schema.get("description", "")
        if isinstance(default, str | int | float):
            assert f"Defaults to {default if isinstance(default, str) else json.dumps(default)}." in description, path
        elif default is None:
            assert "Defaults to" not in description, path


def test_crd_schema_has_defaults_limits_and_rules() -> None:
    assert _schema_at(".spec.training.lora.rank")["default"] == 16
    assert _schema_at(".spec.training.learningRate")["default"] == 2e-4
    assert _schema_at(".spec.training.epochs")["exclusiveMinimum"] is True
    assert "default" not in _schema_at(".spec.training.epochs")
    assert _schema_at(".spec.training.method")["enum"] == ["sft", "dpo", "kto", "grpo", "rloo"]
    assert _schema_at(".spec")["required"] == ["model", "dataset", "training", "output"]
    rules = [validation["rule"] for validation in _schema_at(".spec")["x-kubernetes-validations"]]
    assert "self.model == oldSelf.model" in rules
    assert _schema_at(".status.conditions")["x-kubernetes-list-map-keys"] == ["type"]


def test_crd_definition_is_small_and_has_printer_columns() -> None:
    definition = build_crd()
    assert all(len(json.dumps(build_crd(each))) < 262_144 * 0.6 for each in DEFINITIONS)
    version = definition["spec"]["versions"][0]
    shown = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Phase", "Reason", "Progress", "ETA", "Loss", "Duration", "Age"]
    assert version["subresources"] == {"status": {}}
    assert definition["spec"]["names"]["shortNames"] == ["ftj"]


def test_generate_check_committed_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    # install.yaml is rendered from the chart, which has tests of its own.
    monkeypatch.setattr(generate, "_generate_install_manifest", lambda *, write: [])
    assert generate.main(["--check"]) == 0


def test_generate_check_stale_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(generate.CHART, tmp_path / "chart")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "CHART", tmp_path / "chart")
    monkeypatch.setattr(generate, "_generate_install_manifest", lambda *, write: [])
    assert generate.main(["--check"]) == 1
    assert "stale, run `make generate`: manifests/crd.yaml" in capsys.readouterr().out
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    chart_crds = [*yaml.safe_load_all((tmp_path / "chart" / "crd.yaml").read_text())]
    plain_crds = [*yaml.safe_load_all((tmp_path / "manifests" / "crd.yaml").read_text())]
    assert len(chart_crds) == len(DEFINITIONS)
    for chart_crd, plain in zip(chart_crds, plain_crds, strict=True):
        assert chart_crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert chart_crd == plain


def test_generate_unknown_argument_exits_with_2() -> None:
    assert generate.main(["--chekc"]) == 2


ACCEPTED: dict[str, dict[str, Any]] = {
    "least": {},
    "steps": {"training": {"epochs": None, "maxSteps": 10}},
    "revision of the hub": {"model": {"revision": "main"}},
    "token for the hub": {"model": {"tokenSecretRef": {"name": "hub"}}},
    "claim": {"model": {"uri": "pvc://models/llama"}},
    "data in all of a claim": {"dataset": {"sources": [{"uri": "pvc://data"}]}},
    "maps": {"compute": {"podLabels": {"example.com/team": "nlp"}, "nodeSelector": {"gpu": ""}}},
    "32 long keys": {"compute": {"podAnnotations": {f"{'e' * 200}.com/{n:063}": "v" * 1024 for n in range(32)}}},
    "harmless keys": {
        "compute": {
            "podAnnotations": {
                "sidecar.istio.io/inject": "false",
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            }
        }
    },
    "not ASCII": {"dataset": {"sources": [{"uri": "s3://bucket/données/*.jsonl"}]}},
    "token for a dataset": {
        "dataset": {"sources": [{"uri": "hf://datasets/org/name"}], "tokenSecretRef": {"name": "hub"}}
    },
    "token for a validation dataset": {
        "dataset": {
            "validation": {"sources": [{"uri": "hf://datasets/org/name@main/test/*.csv"}]},
            "tokenSecretRef": {"name": "hub"},
        }
    },
    "token for a test dataset": {
        "dataset": {"tokenSecretRef": {"name": "hub"}},
        "evaluation": {"test": {"sources": [{"uri": "hf://datasets/org/name@main/test/*.csv"}]}},
    },
    "task and gate with test data alone": {
        "evaluation": {
            "task": "chat",
            "test": {"sources": [{"uri": "s3://bucket/test.jsonl"}]},
            "gate": [{"metric": "testLoss", "maximum": 2}],
        }
    },
}
REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs and steps": ({"training": {"maxSteps": 3}}, "exactly one of epochs and maxSteps"),
    "neither": ({"training": {"epochs": None}}, "exactly one of epochs and maxSteps"),
    "no epochs": ({"training": {"epochs": 0}}, "greater than 0"),
    "no sources": ({"dataset": {"sources": []}}, "at least 1 items"),
    "unknown method": ({"training": {"method": "magic"}}, "Unsupported value"),
    "climbing output": ({"output": {"uri": "s3://bucket/a/../b"}}, "must not contain '..'"),
    "wild output": ({"output": {"uri": "s3://bucket/a*"}}, "wildcards"),
    "long in bytes": ({"output": {"uri": "s3://bucket/" + "ü" * 600}}, "longer than 1024 bytes"),
    "revision of a bucket": ({"model": {"uri": "s3://bucket/m", "revision": "r"}}, "hf:// models only"),
    "token for a bucket": (
        {"model": {"uri": "s3://bucket/m", "tokenSecretRef": {"name": "t"}}}, "hf:// models only"),
    "dataset token without a dataset": ({"dataset": {"tokenSecretRef": {"name": "t"}}}, "hf:// data only"),
    "local file": ({"dataset": {"sources": [{"uri": "file:///rows.jsonl"}]}}, "only with finetune-trainer by hand"),
    "local validation file": (
        {"dataset": {"validation": {"sources": [{"uri": "file:///a.jsonl"}]}}}, "only with finetune-trainer by hand"),
    "local test file": (
        {"evaluation": {"test": {"sources": [{"uri": "file:///a.jsonl"}]}}}, "only with finetune-trainer by hand"),
    "test data for preferences": (
        {"training": {"method": "dpo"}, "evaluation": {"test": {"sources": [{"uri": "s3://bucket/test.jsonl"}]}}},
        "evaluation.test needs method sft"),
    "gate on a test without data": (
        {"evaluation": {"gate": [{"metric": "testLoss", "maximum": 2}]}}, "evaluation.gate needs dataset.validation"),
    "claim without a name": ({"dataset": {"sources": [{"uri": "pvc:///a.jsonl"}]}}, "pvc://claim/path"),
    "two targets": ({"training": {"lora": {"targetModules": ["all-linear", "q"]}}}, "either ['all-linear']"),
    "label key": ({"compute": {"podLabels": {"a b": "c"}}}, "a key is malformed"),
    "a key of our own": ({"compute": {"podLabels": {"finetune.dev/job": "x"}}}, "a key is reserved"),
    "a key of Kubernetes": ({"compute": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "a key is reserved"),
    "an order to an injector": (
        {"compute": {"podAnnotations": {"vault.hashicorp.com/agent-inject": "true"}}}, "a key is reserved"),
    "a priority of Kubernetes": (
        {"compute": {"priorityClassName": "system-node-critical"}}, "must not start with 'system-'"),
    "17 GPUs": ({"compute": {"gpusPerNode": 17}}, "less than or equal to 16"),
    "Unsloth on two GPUs": (
        {"compute": {"gpusPerNode": 2}, "training": {"backend": "unsloth"}}, "backend unsloth trains on one GPU"),
    "Secret elsewhere": ({"storage": {"credentialsSecretRef": {"name": "a/b"}}}, "should match"),
    "endpoint with a path": ({"storage": {"endpoint": "http://host/path"}}, "should match"),
}  # fmt: skip


@pytest.mark.cluster
async def test_api_server_valid_spec_is_accepted(world: NamespaceHarness) -> None:
    for index, (name, spec) in enumerate(ACCEPTED.items()):
        stored = await world.create_finetunejob(f"ok-{index}", spec)
        assert stored["spec"]["training"]["lora"]["targetModules"] == ["all-linear"], name
        assert stored["spec"]["compute"]["scratch"] == {"size": "50Gi"}, name


@pytest.mark.cluster
async def test_api_server_invalid_spec_is_rejected(world: NamespaceHarness) -> None:
    for name, (spec, message) in REJECTED.items():
        with pytest.raises(AssertionError) as error:
            await world.create_finetunejob(spec=spec)
        assert message in str(error.value), name
    for name in ("a.b", "a" * 53):
        with pytest.raises(AssertionError, match=r"metadata\.name"):
            await world.create_finetunejob(name)


@pytest.mark.cluster
async def test_api_server_spec_change_is_immutable(world: NamespaceHarness, build: type[Builders]) -> None:
    await world.create_finetunejob()
    path = world.path("finetunejobs", "bot")
    changes = ({"storage": {"region": "eu"}}, {"training": {"lora": {"rank": 8}}})
    for change in (*changes, {"output": {"uri": "s3://bucket/other"}}):
        with pytest.raises(AssertionError, match="is immutable"):
            await world.call("PATCH", path, {"spec": change})
    await world.call("PATCH", path, {"metadata": {"labels": {"team": "nlp"}}})
