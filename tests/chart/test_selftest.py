"""The hooks of `helm test`: a restricted pod, with permissions of its own."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.chart.other_values import merge_other_values

Manifest = dict[str, Any]
VARIANTS = {"default": {}, "all values": merge_other_values()}
OPTIONS = ("--api-versions", "monitoring.coreos.com/v1", "--show-only", "templates/tests/selftest.yaml")


@pytest.fixture(params=VARIANTS)
def hooks(request: pytest.FixtureRequest, render: Callable[..., list[Manifest]]) -> dict[str, Manifest]:
    """The hooks by their kind."""
    objects = render(VARIANTS[request.param], *OPTIONS)
    return {manifest["kind"]: manifest for manifest in objects}


def test_selftest_permissions_are_hooks_that_are_removed(hooks: dict[str, Manifest]) -> None:
    assert set(hooks) == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    for manifest in hooks.values():
        annotations = manifest["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        is_pod = manifest["kind"] == "Pod"
        policy = "before-hook-creation" if is_pod else "before-hook-creation,hook-succeeded"
        assert annotations["helm.sh/hook-delete-policy"] == policy
        assert annotations.get("helm.sh/hook-weight") == (None if is_pod else "-1")


def test_selftest_pod_has_image_and_restrictions_of_operator(
    hooks: dict[str, Manifest], deployment: Callable[..., Manifest], request: pytest.FixtureRequest
) -> None:
    values = VARIANTS[request.node.callspec.params["hooks"]]
    template = deployment(values)["spec"]["template"]
    (operator,), (selftest,) = template["spec"]["containers"], hooks["Pod"]["spec"]["containers"]
    for field in ("image", "imagePullPolicy", "securityContext"):
        assert selftest[field] == operator[field]
    for field in ("securityContext", "nodeSelector", "tolerations", "imagePullSecrets", "priorityClassName"):
        assert hooks["Pod"]["spec"].get(field) == template["spec"].get(field)
    assert values.get("extraEnv", []) == selftest.get("env", [])


def test_selftest_pod_is_not_selected_as_operator(
    hooks: dict[str, Manifest], deployment: Callable[..., Manifest], request: pytest.FixtureRequest
) -> None:
    rendered = deployment(VARIANTS[request.node.callspec.params["hooks"]])
    selector = rendered["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= hooks["Pod"]["metadata"]["labels"].items()


def test_selftest_arguments_and_role_name_objects_of_release(
    hooks: dict[str, Manifest], render: Callable[..., list[Manifest]], request: pytest.FixtureRequest
) -> None:
    objects = render(VARIANTS[request.node.callspec.params["hooks"]])
    (deployment,) = (manifest for manifest in objects if manifest["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    lease = next(item["value"] for item in container["env"] if item["name"] == "FINETUNE_OPERATOR_LEASE_NAME")
    name = deployment["metadata"]["name"]
    (selftest,) = hooks["Pod"]["spec"]["containers"]
    assert selftest["args"] == ["--namespace=finetune-system", f"--deployment={name}", f"--lease={lease}"]
    named = {rule["resources"][0]: rule.get("resourceNames") for rule in hooks["Role"]["rules"]}
    assert named == {"finetunejobs": None, "deployments": [name], "leases": [lease]}
    assert hooks["Pod"]["spec"]["serviceAccountName"] == hooks["ServiceAccount"]["metadata"]["name"]
