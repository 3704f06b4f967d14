"""Tests of the output of `kubectl kustomize` for the base and for FineTuneJobs."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart.deployment_environment import read_environment

from finetune_operator.api import GROUP
from finetune_operator.codegen.crd import DEFINITIONS, KindDefinition, build_root_schema
from local_cluster import tools

Manifest = dict[str, Any]
BuildOverlay = Callable[[Manifest], list[Manifest]]

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
GUIDE = MANIFESTS.parent / "docs" / "how-to" / "gitops.md"
CONFIGURATION = MANIFESTS / "gitops" / "kustomize" / "finetunejob.yaml"
ACCOUNT: Manifest = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}
PRIORITY: Manifest = {
    "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "night"}, "value": 1,
}  # fmt: skip
JOB: Manifest = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bot"},
    "spec": {
        "model": {"uri": "hf://org/name", "tokenSecretRef": {"name": "hub"}},
        "dataset": {"sources": [{"uri": "hf://datasets/org/name"}], "tokenSecretRef": {"name": "hub"}},
        "output": {"uri": "s3://bucket/{name}"},
        "storage": {"credentialsSecretRef": {"name": "keys"}, "caConfigMapRef": {"name": "ca", "key": "ca.crt"}},
        "compute": {
            "image": "trainer:1",
            "imagePullSecrets": [{"name": "keys"}, {"name": "hub"}],
            "serviceAccountName": "robot",
            "priorityClassName": "night",
        },
    },
}


def run_kustomize(folder: Path) -> list[Manifest]:
    tools.ensure_built()
    command = [tools.find_program("kubectl"), "kustomize", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def _kind_and_name(body: Manifest) -> tuple[str, str]:
    return body["kind"], body["metadata"]["name"]


@pytest.fixture
def overlay(tmp_path: Path) -> BuildOverlay:
    """Return a function that builds a kustomization next to a copy of our manifests."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump_all([JOB, ACCOUNT, PRIORITY]))

    def build(content: Manifest) -> list[Manifest]:
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return run_kustomize(tmp_path)

    return build


def test_kustomize_base_equals_install_yaml() -> None:
    plain = [manifest for manifest in yaml.safe_load_all((MANIFESTS / "install.yaml").read_text()) if manifest]
    assert sorted(run_kustomize(MANIFESTS), key=_kind_and_name) == sorted(plain, key=_kind_and_name)


def test_kustomize_guide_overlay_changes_image_namespace_settings(overlay: BuildOverlay) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (content,) = (block for block in map(yaml.safe_load, blocks) if block.get("resources") == ["manifests"])
    objects = overlay(content)
    by_name = {_kind_and_name(manifest): manifest for manifest in objects}
    (container,) = by_name["Deployment", "finetune-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/finetune-operator:0.1.0"
    variables = read_environment(by_name["Deployment", "finetune-operator"])
    assert variables["FINETUNE_OPERATOR_TRAINER_IMAGE"] == "registry.example/finetune-trainer:0.1.0"
    assert variables["FINETUNE_OPERATOR_LEASE_NAMESPACE"] == "ml"  # where its Role is
    assert variables["FINETUNE_OPERATOR_INSTALLATION_ID"] == "ml/finetune-operator"  # not that of another overlay
    assert {manifest["metadata"].get("namespace", "ml") for manifest in objects} == {"ml"}
    (subject,) = by_name["ClusterRoleBinding", "finetune-operator"]["subjects"]
    assert (subject["name"], subject["namespace"]) == ("finetune-operator", "ml")
    assert ("Namespace", "ml") in by_name


def test_kustomize_finetunejob_names_and_images_are_replaced(overlay: BuildOverlay) -> None:
    objects = overlay(
        {
            "resources": ["job.yaml"],
            "namePrefix": "team-",
            "configurations": ["manifests/gitops/kustomize/finetunejob.yaml"],
            "secretGenerator": [{"name": name, "literals": ["key=value"]} for name in ("hub", "keys")],
            "configMapGenerator": [{"name": "ca", "literals": ["ca.crt=x"]}],
            "images": [{"name": "trainer", "newTag": "2"}],
        }
    )
    names = {name.split("-")[1]: name for _, name in map(_kind_and_name, objects)}
    assert all(len(names[original]) > len(f"team-{original}") for original in ("hub", "keys", "ca"))
    spec = next(manifest for manifest in objects if manifest["kind"] == "FineTuneJob")["spec"]
    assert spec["model"]["tokenSecretRef"]["name"] == spec["dataset"]["tokenSecretRef"]["name"] == names["hub"]
    assert spec["storage"]["credentialsSecretRef"]["name"] == names["keys"]
    assert spec["storage"]["caConfigMapRef"] == {"name": names["ca"], "key": "ca.crt"}
    assert [secret["name"] for secret in spec["compute"]["imagePullSecrets"]] == [names["keys"], names["hub"]]
    assert (spec["compute"]["serviceAccountName"], spec["compute"]["priorityClassName"]) == ("team-robot", "team-night")
    assert spec["compute"]["image"] == "trainer:2"


REFERENCES = {
    "tokenSecretRef": "Secret",
    "credentialsSecretRef": "Secret",
    "keySecretRef": "Secret",
    "imagePullSecrets": "Secret",
    "caConfigMapRef": "ConfigMap",
    "serviceAccountName": "ServiceAccount",
    "priorityClassName": "PriorityClass",
}


def _iter_fields(schema: Manifest, path: str) -> Iterator[str]:
    for name, subschema in schema.get("properties", {}).items():
        yield f"{path}/{name}"
        yield from _iter_fields(subschema.get("items", subschema), f"{path}/{name}")


def _list_spec_fields(definition: KindDefinition) -> list[tuple[str, str]]:
    """Return the path and the name of each field of a spec."""
    paths = list(_iter_fields(build_root_schema(definition)["properties"]["spec"], "spec"))
    return [(path, path.rpartition("/")[2]) for path in paths]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.kind)
def test_kustomize_every_reference_is_configured(definition: KindDefinition) -> None:
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configured = {
        (field["path"].removesuffix("/name"), reference["kind"])
        for reference in configuration["nameReference"]
        for field in reference["fieldSpecs"]
        if (field["group"], field["kind"]) == (GROUP, definition.kind)
    }
    fields = _list_spec_fields(definition)
    assert configured == {(path, REFERENCES[name]) for path, name in fields if name in REFERENCES}
    assert {path for path, name in fields if name.endswith(("SecretRef", "ConfigMapRef"))} <= dict(configured).keys()
    images = {field["path"] for field in configuration["images"] if field["kind"] == definition.kind}
    assert images == {path for path, name in fields if name == "image"}


def test_kustomize_template_of_schedule_names_and_images_are_replaced(overlay: BuildOverlay, tmp_path: Path) -> None:
    spec = {"template": {"spec": JOB["spec"]}}
    schedule = {**JOB, "kind": "FineTuneSchedule", "spec": spec}
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    objects = overlay(
        {
            "resources": ["schedule.yaml"],
            "configurations": ["manifests/gitops/kustomize/finetunejob.yaml"],
            "secretGenerator": [{"name": "keys", "literals": ["key=value"]}],
            "images": [{"name": "trainer", "newTag": "2"}],
        }
    )
    names = {manifest["kind"]: manifest["metadata"]["name"] for manifest in objects}
    template = next(manifest for manifest in objects if manifest["kind"] == "FineTuneSchedule")["spec"]["template"]
    assert template["spec"]["storage"]["credentialsSecretRef"]["name"] == names["Secret"] != "keys"
    assert template["spec"]["compute"]["image"] == "trainer:2"
