"""What Kustomize, as kubectl has it, makes of the base and of FineTuneJobs."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.environment import environment
from tests.operator.samples import references

from finetune_operator.codegen.crd import root_schema
from local_cluster import tools

Manifest = dict[str, Any]
Build = Callable[[Manifest], list[Manifest]]

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
        "dataset": {"sources": [{"uri": "s3://bucket/data.jsonl"}]},
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


def kustomize(folder: Path) -> list[Manifest]:
    tools.ensure()
    command = [tools.program("kubectl"), "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _name(body: Manifest) -> tuple[str, str]:
    return body["kind"], body["metadata"]["name"]


@pytest.fixture
def overlay(tmp_path: Path) -> Build:
    """What a kustomization makes that lies beside a copy of ours."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump_all([JOB, ACCOUNT, PRIORITY]))

    def build(content: Manifest) -> list[Manifest]:
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return kustomize(tmp_path)

    return build


def test_the_base_is_what_install_yaml_is() -> None:
    plain = [each for each in yaml.safe_load_all((MANIFESTS / "install.yaml").read_text()) if each]
    assert sorted(kustomize(MANIFESTS), key=_name) == sorted(plain, key=_name)


def test_the_overlay_of_the_guide_changes_image_namespace_and_settings(overlay: Build) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (content,) = (each for each in map(yaml.safe_load, blocks) if each.get("resources") == ["manifests"])
    made = overlay(content)
    found = {_name(each): each for each in made}
    (container,) = found["Deployment", "finetune-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/finetune-operator:0.1.0"
    variables = environment(found["Deployment", "finetune-operator"])
    assert variables["FINETUNE_OPERATOR_TRAINER_IMAGE"] == "registry.example/finetune-trainer:0.1.0"
    assert variables["FINETUNE_OPERATOR_LEASE_NAMESPACE"] == "ml"  # where its Role is
    assert {each["metadata"].get("namespace", "ml") for each in made} == {"ml"}
    (subject,) = found["ClusterRoleBinding", "finetune-operator"]["subjects"]
    assert (subject["name"], subject["namespace"]) == ("finetune-operator", "ml")
    assert ("Namespace", "ml") in found


def test_names_and_images_in_a_finetunejob_follow(overlay: Build) -> None:
    made = overlay(
        {
            "resources": ["job.yaml"],
            "namePrefix": "team-",
            "configurations": ["manifests/gitops/kustomize/finetunejob.yaml"],
            "secretGenerator": [{"name": name, "literals": ["key=value"]} for name in ("hub", "keys")],
            "configMapGenerator": [{"name": "ca", "literals": ["ca.crt=x"]}],
            "images": [{"name": "trainer", "newTag": "2"}],
        }
    )
    names = {name.split("-")[1]: name for _, name in map(_name, made)}
    assert all(len(names[each]) > len(f"team-{each}") for each in ("hub", "keys", "ca"))
    spec = next(each for each in made if each["kind"] == "FineTuneJob")["spec"]
    assert spec["model"]["tokenSecretRef"]["name"] == names["hub"]
    assert spec["storage"]["credentialsSecretRef"]["name"] == names["keys"]
    assert spec["storage"]["caConfigMapRef"] == {"name": names["ca"], "key": "ca.crt"}
    assert [each["name"] for each in spec["compute"]["imagePullSecrets"]] == [names["keys"], names["hub"]]
    assert (spec["compute"]["serviceAccountName"], spec["compute"]["priorityClassName"]) == ("team-robot", "team-night")
    assert spec["compute"]["image"] == "trainer:2"


def test_every_reference_is_configured() -> None:
    paths = {
        path.split("/")[-2]
        for each in yaml.safe_load(CONFIGURATION.read_text())["nameReference"]
        for path in (field["path"] for field in each["fieldSpecs"])
    }
    assert paths >= {*references(root_schema())}
