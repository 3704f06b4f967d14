"""Tests of the admission of the API server by the CRD alone, without an operator or a webhook."""

import json
import secrets
from collections.abc import Callable, Iterator

import pytest
from kubernetes.client import ApiException
from tests.support.cluster.admission_cases import (
    ACCEPTED,
    ALLOWED_PATCHES,
    COMPUTE_CHANGES,
    IMMUTABLE_CHANGES,
    REJECTED,
)
from tests.support.cluster.manifests import Manifest, apply_changes, build_valid_manifest

from finetune_operator.api import GROUP, KIND, PLURAL, VERSION, FineTuneJobSpec

# The first test waits for the cluster.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


class AdmissionClient:
    """FineTuneJobs of one namespace; nothing is stored unless `store` is called."""

    def __init__(self, call: Callable[..., Manifest], namespace: str) -> None:
        self._call = call
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"

    def dry_run_create(self, manifest: Manifest) -> Manifest:
        return self._call("POST", self._path, manifest, dryRun="All", fieldValidation="Strict")

    def create(self, manifest: Manifest) -> Manifest:
        return self._call("POST", self._path, manifest, fieldValidation="Strict")

    def dry_run_patch(self, name: str, body: Manifest) -> Manifest:
        return self._call("PATCH", f"{self._path}/{name}", body, dryRun="All")

    def patch_status(self, name: str, body: Manifest, *, dry_run: bool = True) -> Manifest:
        options = {"dryRun": "All"} if dry_run else {}
        return self._call("PATCH", f"{self._path}/{name}/status", body, **options)


def capture_rejection(request: Callable[[], object]) -> str:
    """Return the message with which the API server rejects the request."""
    with pytest.raises(ApiException) as raised:
        request()
    assert raised.value.status in (400, 422)
    return str(json.loads(raised.value.body or "{}")["message"])


@pytest.fixture(scope="module")
def jobs(call: Callable[..., Manifest], crd: Manifest) -> Iterator[AdmissionClient]:
    assert crd["spec"]["group"] == GROUP
    namespace = f"admission-{secrets.token_hex(4)}"
    call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield AdmissionClient(call, namespace)
    call("DELETE", f"/api/v1/namespaces/{namespace}")


@pytest.fixture(scope="module")
def stored(jobs: AdmissionClient) -> str:
    """Return the name of a stored FineTuneJob that fits on no node."""
    nowhere = {"spec.compute.nodeSelector": {"finetune.dev/nowhere": "true"}}
    jobs.create(apply_changes(build_valid_manifest("stored"), nowhere))
    return "stored"


@pytest.fixture(scope="module")
def suspended(jobs: AdmissionClient) -> tuple[str, str]:
    """Return the names of a FineTuneJob that is being suspended, and of one that is suspended."""
    nowhere = {"spec.compute.nodeSelector": {"finetune.dev/nowhere": "true"}, "spec.suspend": True}
    condition = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "", "observedGeneration": 1}
    for name in ("asked", "stopped"):
        jobs.create(apply_changes(build_valid_manifest(name), nowhere))
    at = {"lastTransitionTime": "2026-11-25T08:00:00Z"}
    jobs.patch_status("stopped", {"status": {"conditions": [{**condition, **at}]}}, dry_run=False)
    return "asked", "stopped"


@pytest.mark.parametrize("case", REJECTED)
def test_api_server_invalid_manifest_is_rejected(jobs: AdmissionClient, case: str) -> None:
    changes, field, words = REJECTED[case]
    message = capture_rejection(lambda: jobs.dry_run_create(apply_changes(build_valid_manifest(), changes)))
    assert field in message
    assert words in message


@pytest.mark.parametrize("case", ACCEPTED)
def test_api_server_valid_manifest_gets_pydantic_defaults(jobs: AdmissionClient, case: str) -> None:
    manifest = apply_changes(build_valid_manifest(), ACCEPTED[case])
    answer = jobs.dry_run_create(manifest)
    assert answer["spec"] == FineTuneJobSpec.model_validate(manifest["spec"]).to_json()


def test_api_server_defaults_every_hyperparameter(jobs: AdmissionClient) -> None:
    training = jobs.dry_run_create(build_valid_manifest())["spec"]["training"]
    assert training["learningRate"] == 2e-4
    assert training["lora"] == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0,
        "variant": "lora",
        "targetModules": ["all-linear"],
        "targetParameters": [],
        "trainableTokens": [],
    }


@pytest.mark.parametrize("case", IMMUTABLE_CHANGES)
def test_api_server_run_field_changed_is_immutable(jobs: AdmissionClient, stored: str, case: str) -> None:
    spec, words = IMMUTABLE_CHANGES[case]
    message = capture_rejection(lambda: jobs.dry_run_patch(stored, {"spec": spec}))
    assert words in message
    assert "create a new FineTuneJob for a new run" in message


@pytest.mark.parametrize("case", ALLOWED_PATCHES)
def test_api_server_mutable_field_changed_is_accepted(jobs: AdmissionClient, stored: str, case: str) -> None:
    ((part, values),) = ALLOWED_PATCHES[case].items()
    assert jobs.dry_run_patch(stored, ALLOWED_PATCHES[case])[part].items() >= values.items()


@pytest.mark.parametrize("case", COMPUTE_CHANGES)
def test_api_server_compute_changes_only_after_suspension(
    jobs: AdmissionClient, stored: str, suspended: tuple[str, str], case: str
) -> None:
    suspending, stopped = suspended
    change = {"spec": COMPUTE_CHANGES[case]}
    change_with = {suspend: {"spec": {**COMPUTE_CHANGES[case], "suspend": suspend}} for suspend in (True, False)}
    rejections = [
        capture_rejection(lambda: jobs.dry_run_patch(stored, change)),
        capture_rejection(lambda: jobs.dry_run_patch(stored, change_with[True])),
        # Suspension is requested, but not yet reported.
        capture_rejection(lambda: jobs.dry_run_patch(suspending, change)),
        capture_rejection(lambda: jobs.dry_run_patch(suspending, change_with[False])),
    ]
    assert all("compute can change only while suspended" in message for message in rejections)
    assert jobs.dry_run_patch(stopped, change)["metadata"]["generation"] == 2
    assert jobs.dry_run_patch(stopped, change_with[False])["metadata"]["generation"] == 2  # resumes, too


def test_api_server_status_in_main_resource_is_ignored(jobs: AdmissionClient, stored: str) -> None:
    assert jobs.dry_run_patch(stored, {"status": {"phase": "Complete"}}).get("status", {}).get("phase") != "Complete"
    forged = {**build_valid_manifest(), "status": {"phase": "Complete"}}
    assert jobs.dry_run_create(forged)["status"] == {"conditions": [], "observedGeneration": 0}


def test_api_server_spec_in_status_subresource_is_ignored(jobs: AdmissionClient, stored: str) -> None:
    answer = jobs.patch_status(stored, {"spec": {"backoffLimit": 9}, "status": {"phase": "Running"}})
    assert answer["spec"]["backoffLimit"] == 3
    assert answer["status"]["phase"] == "Running"


def test_api_server_invalid_status_is_rejected(jobs: AdmissionClient, stored: str) -> None:
    message = capture_rejection(lambda: jobs.patch_status(stored, {"status": {"phase": "Ready"}}))
    assert "status.phase" in message
    message = capture_rejection(lambda: jobs.patch_status(stored, {"status": {"progress": {"percentage": 101}}}))
    assert "status.progress.percentage" in message


def test_api_server_openapi_describes_every_field(call: Callable[..., Manifest], jobs: AdmissionClient) -> None:
    assert jobs
    # What `kubectl explain` prints from.
    schemas = call("GET", f"/openapi/v3/apis/{GROUP}/{VERSION}")["components"]["schemas"]
    (root,) = (schema for name, schema in schemas.items() if name.endswith(f".{KIND}"))
    fields = [field for part in ("spec", "status") for field in _iter_fields(root["properties"][part], part)]
    assert len(fields) > 100
    assert [path for path, description in fields if not description] == []


def _iter_fields(node: Manifest, path: str) -> Iterator[tuple[str, str]]:
    """(path, description) of a field and all below it."""
    yield path, node.get("description", "")
    for name, child in node.get("properties", {}).items():
        yield from _iter_fields(child, f"{path}.{name}")
    for name, child in node.get("items", {}).get("properties", {}).items():
        yield from _iter_fields(child, f"{path}[].{name}")
