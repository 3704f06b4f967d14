"""What the API server takes, what it refuses, and what it says: no operator and no webhook needed."""

import json
import secrets
from collections.abc import Callable, Iterator

import pytest
from kubernetes.client import ApiException
from tests.cluster.admission_cases import ACCEPTED, ALLOWED_PATCHES, COMPUTE, IMMUTABLE, REFUSED
from tests.cluster.manifests import Manifest, changed, good

from finetune_operator.api import GROUP, KIND, PLURAL, VERSION, FineTuneJobSpec

# The first test waits for the cluster.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


class Jobs:
    """FineTuneJobs of one namespace; nothing is stored unless `store` is called."""

    def __init__(self, call: Callable[..., Manifest], namespace: str) -> None:
        self._call = call
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"

    def create(self, manifest: Manifest) -> Manifest:
        return self._call("POST", self._path, manifest, dryRun="All", fieldValidation="Strict")

    def store(self, manifest: Manifest) -> Manifest:
        return self._call("POST", self._path, manifest, fieldValidation="Strict")

    def patch(self, name: str, body: Manifest) -> Manifest:
        return self._call("PATCH", f"{self._path}/{name}", body, dryRun="All")

    def patch_status(self, name: str, body: Manifest, *, dry_run: bool = True) -> Manifest:
        options = {"dryRun": "All"} if dry_run else {}
        return self._call("PATCH", f"{self._path}/{name}/status", body, **options)


def refusal(attempt: Callable[[], object]) -> str:
    """What the API server says when it refuses."""
    with pytest.raises(ApiException) as raised:
        attempt()
    assert raised.value.status in (400, 422)
    return str(json.loads(raised.value.body or "{}")["message"])


@pytest.fixture(scope="module")
def jobs(call: Callable[..., Manifest], crd: Manifest) -> Iterator[Jobs]:
    assert crd["spec"]["group"] == GROUP
    namespace = f"admission-{secrets.token_hex(4)}"
    call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield Jobs(call, namespace)
    call("DELETE", f"/api/v1/namespaces/{namespace}")


@pytest.fixture(scope="module")
def stored(jobs: Jobs) -> str:
    """The name of a FineTuneJob that is stored, and that no node will ever take."""
    nowhere = {"spec.compute.nodeSelector": {"finetune.dev/nowhere": "true"}}
    jobs.store(changed(good("stored"), nowhere))
    return "stored"


@pytest.fixture(scope="module")
def suspended(jobs: Jobs) -> tuple[str, str]:
    """The names of one that is asked to stop, and of one that has."""
    nowhere = {"spec.compute.nodeSelector": {"finetune.dev/nowhere": "true"}, "spec.suspend": True}
    condition = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "", "observedGeneration": 1}
    for name in ("asked", "stopped"):
        jobs.store(changed(good(name), nowhere))
    at = {"lastTransitionTime": "2026-11-25T08:00:00Z"}
    jobs.patch_status("stopped", {"status": {"conditions": [{**condition, **at}]}}, dry_run=False)
    return "asked", "stopped"


@pytest.mark.parametrize("case", REFUSED)
def test_refused(jobs: Jobs, case: str) -> None:
    changes, field, words = REFUSED[case]
    said = refusal(lambda: jobs.create(changed(good(), changes)))
    assert field in said
    assert words in said


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_with_the_defaults_that_pydantic_knows(jobs: Jobs, case: str) -> None:
    manifest = changed(good(), ACCEPTED[case])
    answer = jobs.create(manifest)
    assert answer["spec"] == FineTuneJobSpec.model_validate(manifest["spec"]).to_json()


def test_all_hyper_parameters_are_shown(jobs: Jobs) -> None:
    training = jobs.create(good())["spec"]["training"]
    assert training["learningRate"] == 2e-4
    assert training["lora"] == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0,
        "variant": "lora",
        "targetModules": ["all-linear"],
    }


@pytest.mark.parametrize("case", IMMUTABLE)
def test_a_run_is_never_changed(jobs: Jobs, stored: str, case: str) -> None:
    spec, words = IMMUTABLE[case]
    said = refusal(lambda: jobs.patch(stored, {"spec": spec}))
    assert words in said
    assert "create a new FineTuneJob for a new run" in said


@pytest.mark.parametrize("case", ALLOWED_PATCHES)
def test_what_may_change(jobs: Jobs, stored: str, case: str) -> None:
    ((part, values),) = ALLOWED_PATCHES[case].items()
    assert jobs.patch(stored, ALLOWED_PATCHES[case])[part].items() >= values.items()


@pytest.mark.parametrize("case", COMPUTE)
def test_compute_may_change_only_once_no_pod_is_left(
    jobs: Jobs, stored: str, suspended: tuple[str, str], case: str
) -> None:
    asked, stopped = suspended
    change = {"spec": COMPUTE[case]}
    too_late = {"spec": {**COMPUTE[case], "suspend": False}}
    refused = [
        refusal(lambda: jobs.patch(stored, change)),
        refusal(lambda: jobs.patch(asked, change)),  # it is to stop, but nobody says yet that it has
        refusal(lambda: jobs.patch(stopped, too_late)),
    ]
    assert all("compute can change only while suspended" in said for said in refused)
    assert jobs.patch(stopped, change)["metadata"]["generation"] == 2


def test_status_is_not_written_through_the_main_resource(jobs: Jobs, stored: str) -> None:
    assert jobs.patch(stored, {"status": {"phase": "Complete"}}).get("status", {}).get("phase") != "Complete"
    forged = {**good(), "status": {"phase": "Complete"}}
    assert jobs.create(forged)["status"] == {"conditions": [], "observedGeneration": 0}


def test_the_spec_is_not_written_through_the_status(jobs: Jobs, stored: str) -> None:
    answer = jobs.patch_status(stored, {"spec": {"backoffLimit": 9}, "status": {"phase": "Running"}})
    assert answer["spec"]["backoffLimit"] == 3
    assert answer["status"]["phase"] == "Running"


def test_a_status_has_a_schema_too(jobs: Jobs, stored: str) -> None:
    said = refusal(lambda: jobs.patch_status(stored, {"status": {"phase": "Ready"}}))
    assert "status.phase" in said
    said = refusal(lambda: jobs.patch_status(stored, {"status": {"progress": {"percentage": 101}}}))
    assert "status.progress.percentage" in said


def test_explain_has_words_for_every_field(call: Callable[..., Manifest], jobs: Jobs) -> None:
    assert jobs
    # What `kubectl explain` prints from.
    schemas = call("GET", f"/openapi/v3/apis/{GROUP}/{VERSION}")["components"]["schemas"]
    (root,) = (schema for name, schema in schemas.items() if name.endswith(f".{KIND}"))
    fields = [each for part in ("spec", "status") for each in _fields(root["properties"][part], part)]
    assert len(fields) > 100
    assert [path for path, description in fields if not description] == []


def _fields(node: Manifest, path: str) -> Iterator[tuple[str, str]]:
    """(path, description) of a field and all below it."""
    yield path, node.get("description", "")
    for name, child in node.get("properties", {}).items():
        yield from _fields(child, f"{path}.{name}")
    for name, child in node.get("items", {}).get("properties", {}).items():
        yield from _fields(child, f"{path}[].{name}")
