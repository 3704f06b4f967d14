"""The merge of a compute profile into a Job: which value wins, and what a profile can never change."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.operator.builders import build_finetunejob

from finetune_operator.api import FineTuneJob
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.policy.profiles import CA_VARIABLES, ChosenProfile, Profile, parse_profiles
from finetune_operator.resources.job import build_job
from finetune_operator.resources.profile import merge_maps
from finetune_operator.settings import Settings
from finetune_operator.status.deadlines import get_startup_deadline_seconds

Body = dict[str, Any]
ALLOWED_POD_FIELDS = {
    "runtimeClassName", "affinity", "topologySpreadConstraints", "schedulerName", "resourceClaims", "dnsConfig",
    "hostAliases", "priorityClassName", "nodeSelector", "tolerations",
}  # fmt: skip
MERGED_CONTAINER_FIELDS = {"env", "resources", "volumeMounts", "securityContext"}


def _parse_profile(profile: Body) -> Profile:
    return parse_profiles(json.dumps({"profiles": {"a": profile}}).encode()).profiles["a"]


def _build_job(profile: Body | None, spec: Body | None = None, defaults: Body | None = None) -> Body:
    chosen = ChosenProfile("a", _parse_profile(profile)) if profile is not None else None
    settings = Settings.model_validate({"defaults": defaults or {}})
    return build_job(FineTuneJob.model_validate(build_finetunejob(spec=spec)), settings, chosen)


def _get_pod(job: Body) -> Body:
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def _get_environment(job: Body) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in _get_pod(job)["containers"][0]["env"]}


class MergeCase(NamedTuple):
    """A profile, `compute` and the defaults of the installation, with the field of the pod and its value."""

    profile: Body
    compute: Body
    defaults: Body
    field: str
    expected: object
    enforced: object
    """The value if the profile has `enforce`."""


def _select(**selector: str) -> Body:
    return {"nodeSelector": selector}


MERGE_CASES = {
    "map, all keys": MergeCase(
        {"podSpec": _select(a="profile", b="profile")}, _select(b="own", c="own"), _select(d="default"),
        "nodeSelector", {"a": "profile", "b": "own", "c": "own"}, {"a": "profile", "b": "profile", "c": "own"},
    ),
    "map, default of the installation": MergeCase(
        {"podSpec": _select(a="profile")}, {}, _select(a="default", b="default"),
        "nodeSelector", {"a": "profile", "b": "default"}, {"a": "profile", "b": "default"},
    ),
    "scalar of all three": MergeCase(
        {"podSpec": {"priorityClassName": "profile"}}, {"priorityClassName": "own"}, {"priorityClassName": "default"},
        "priorityClassName", "own", "profile",
    ),
    "scalar of profile and default": MergeCase(
        {"podSpec": {"priorityClassName": "profile"}}, {}, {"priorityClassName": "default"},
        "priorityClassName", "profile", "profile",
    ),
    "scalar of default": MergeCase({}, {}, {"priorityClassName": "default"}, "priorityClassName", "default", "default"),
    "list": MergeCase(
        {"podSpec": {"tolerations": [{"key": "b", "operator": "Exists"}]}},
        {"tolerations": [{"key": "a", "operator": "Exists"}]}, {},
        "tolerations", [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}],
        [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}],
    ),
    "field of the profile only": MergeCase(
        {"podSpec": {"runtimeClassName": "nvidia"}}, {}, {}, "runtimeClassName", "nvidia", "nvidia"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGE_CASES.values(), ids=MERGE_CASES)
def test_apply_profile_merges_in_documented_order(case: MergeCase) -> None:
    job = _build_job(case.profile, {"compute": case.compute}, case.defaults)
    assert _get_pod(job)[case.field] == case.expected
    enforced_job = _build_job({**case.profile, "enforce": True}, {"compute": case.compute}, case.defaults)
    assert _get_pod(enforced_job)[case.field] == case.enforced


RESOURCES: Body = {
    "container": {
        "resources": {"requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"memory": "64Gi", "x.y/efa": "4"}}
    }
}


def test_apply_profile_own_limit_replaces_request_of_profile() -> None:
    """The request of 64Gi with an own limit of 32Gi would be an invalid pod."""
    compute = {"gpusPerNode": 2, "resources": {"limits": {"memory": "32Gi"}}}
    job = _build_job(RESOURCES, {"compute": compute}, {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}})
    assert _get_pod(job)["containers"][0]["resources"] == {
        "requests": {"ephemeral-storage": "50Gi", "nvidia.com/gpu": "2", "cpu": "8"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "2", "x.y/efa": "4"},
    }


def test_apply_profile_enforced_keeps_number_of_gpus() -> None:
    profile: Body = {"container": {"resources": {"limits": {"nvidia.com/gpu": "8", "memory": "64Gi"}}}, "enforce": True}
    job = _build_job(profile, {"compute": {"gpusPerNode": 2, "resources": {"limits": {"memory": "1Ti"}}}})
    assert _get_pod(job)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "64Gi"}


class DiskCase(NamedTuple):
    """Quantities of `ephemeral-storage` in a profile and in `compute`, and what the pod gets for 50Gi of scratch."""

    profile: Body
    own: Body
    scratch: Body
    size: str
    request: str | None
    limit: str | None


GIB = 2**30
DISK_CASES = {
    "limit below scratch": DiskCase({"limits": "20Gi"}, {}, {}, str(20 * GIB), "20Gi", "20Gi"),
    "limit above scratch": DiskCase({"limits": "100Gi"}, {}, {}, str(50 * GIB), "50Gi", "100Gi"),
    "request": DiskCase({"requests": "60Gi"}, {}, {}, str(50 * GIB), "60Gi", None),
    "own limit": DiskCase({"limits": "20Gi"}, {"limits": "30Gi"}, {}, str(30 * GIB), "30Gi", "30Gi"),
    "volume of a class": DiskCase({"limits": "20Gi"}, {}, {"storageClassName": "fast"}, str(50 * GIB), None, "20Gi"),
}


@pytest.mark.parametrize("case", DISK_CASES.values(), ids=DISK_CASES)
def test_apply_profile_disk_limit_is_known_to_trainer(case: DiskCase) -> None:
    def build_resources(quantities: Body) -> Body:
        return {part: {"ephemeral-storage": quantity} for part, quantity in quantities.items()}

    profile = {"container": {"resources": build_resources(case.profile)}}
    compute = {"resources": build_resources(case.own), "scratch": case.scratch}
    job = _build_job(profile, {"compute": compute})
    resources = _get_pod(job)["containers"][0]["resources"]
    assert _get_environment(job)["FINETUNE_SCRATCH_BYTES"] == case.size
    assert resources["requests"].get("ephemeral-storage") == case.request
    assert resources["limits"].get("ephemeral-storage") == case.limit


def test_apply_profile_enforced_disk_limit_replaces_own() -> None:
    limits = {"container": {"resources": {"limits": {"ephemeral-storage": "40Gi"}}}, "enforce": True}
    job = _build_job(limits, {"compute": {"resources": {"limits": {"ephemeral-storage": "5Gi"}}}})
    assert _get_environment(job)["FINETUNE_SCRATCH_BYTES"] == str(40 * GIB)


@pytest.mark.parametrize(("gpus", "mounts"), [(1, 1), (8, 1)])
def test_apply_profile_shared_memory_replaces_default_size(gpus: int, mounts: int) -> None:
    pod = _get_pod(_build_job({"sharedMemory": "32Gi"}, {"compute": {"gpusPerNode": gpus}}))
    volumes = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
    assert volumes == [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}]
    assert [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]].count("/dev/shm") == mounts


def test_apply_profile_bundle_is_mounted_for_all_variables() -> None:
    job = _build_job({"caConfigMapRef": {"name": "company-ca"}})
    environment = _get_environment(job)
    assert {environment[name] for name in CA_VARIABLES} == {"/etc/finetune/profile-ca/ca.crt"}
    volume = next(volume for volume in _get_pod(job)["volumes"] if volume["name"] == "profile-ca")
    assert volume["configMap"] == {"name": "company-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}


@pytest.mark.parametrize(("enforce", "path"), [(False, "/etc/finetune/ca"), (True, "/etc/finetune/profile-ca")])
def test_apply_profile_own_bundle_is_used_for_s3_unless_enforced(enforce: bool, path: str) -> None:
    profile = {"caConfigMapRef": {"name": "company-ca"}, "enforce": enforce}
    environment = _get_environment(_build_job(profile, {"storage": {"caConfigMapRef": {"name": "own"}}}))
    assert environment["AWS_CA_BUNDLE"] == f"{path}/ca.crt"
    assert environment["SSL_CERT_FILE"] == "/etc/finetune/profile-ca/ca.crt"


def test_apply_profile_default_bundle_of_storage_gives_way() -> None:
    defaults = {"storage": {"caConfigMapRef": {"name": "default"}}}
    environment = _get_environment(_build_job({"caConfigMapRef": {"name": "company-ca"}}, {}, defaults))
    assert environment["AWS_CA_BUNDLE"] == "/etc/finetune/profile-ca/ca.crt"


def test_apply_profile_is_recorded_on_job() -> None:
    profile = {"podLabels": {"team": "a"}}
    annotations = _build_job(profile)["metadata"]["annotations"]
    assert annotations["finetune.dev/profile"] == "a"
    assert annotations["finetune.dev/profile-hash"] == _parse_profile(profile).compute_hash()


@pytest.mark.parametrize(
    ("profile", "own", "expected"),
    [
        ({"startupDeadlineSeconds": 60}, None, 60),
        ({"startupDeadlineSeconds": 60}, 30, 30),
        ({"startupDeadlineSeconds": 60, "enforce": True}, 30, 60),
        ({"enforce": True}, None, 900),
    ],
)
def test_apply_profile_startup_deadline_has_documented_order(profile: Body, own: int | None, expected: int) -> None:
    spec = {"startupDeadlineSeconds": own} if own else {}
    job = _build_job(profile, spec, {"startupDeadlineSeconds": 900})
    assert get_startup_deadline_seconds(read_run_policy(build_finetunejob(spec=spec)), job) == expected


HIDDEN_CASES: dict[str, tuple[Body | None, Body, str | None]] = {
    "no device": (None, {"gpusPerNode": 0}, "none"),
    "GPU": (None, {"gpusPerNode": 1}, None),
    "device": (None, {"gpusPerNode": 0, "resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}, None),
    "zero devices": (None, {"gpusPerNode": 0, "resources": {"limits": {"rdma/hca": "0"}}}, "none"),
    "huge pages": (None, {"gpusPerNode": 0, "resources": {"limits": {"hugepages-2Mi": "2Mi"}}}, "none"),
    "claim of the profile": (
        {"podSpec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}},
        {"gpusPerNode": 0},
        None,
    ),
    "device of the profile": (RESOURCES, {"gpusPerNode": 0}, None),
    "variable of the profile": (
        {"container": {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}]}},
        {"gpusPerNode": 0},
        "0",
    ),
}


@pytest.mark.parametrize(("profile", "compute", "expected"), HIDDEN_CASES.values(), ids=HIDDEN_CASES)
def test_job_without_devices_sees_no_gpu(profile: Body | None, compute: Body, expected: str | None) -> None:
    assert _get_environment(_build_job(profile, {"compute": compute})).get("NVIDIA_VISIBLE_DEVICES") == expected


def test_apply_profile_keeps_labels_of_operator() -> None:
    job = _build_job({"podLabels": {"team": "profile", "pool": "a"}}, {"compute": {"podLabels": {"team": "own"}}})
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels == {
        "app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot", "team": "own", "pool": "a",
    }  # fmt: skip


WORDS = st.sampled_from(["a", "b", "c", "team"])
MAPS = st.dictionaries(WORDS, WORDS, max_size=4)
TREES = st.fixed_dictionaries({}, optional={
    "map": MAPS, "list": st.lists(WORDS, max_size=3), "scalar": WORDS,
    "nested": st.fixed_dictionaries({}, optional={"map": MAPS, "list": st.lists(WORDS, max_size=3)}),
})  # fmt: skip


@given(TREES, TREES, TREES)
def test_merge_maps_is_associative(first: Body, second: Body, third: Body) -> None:
    assert merge_maps(merge_maps(first, second), third) == merge_maps(first, merge_maps(second, third))


PROFILES = st.fixed_dictionaries({"enforce": st.booleans()}, optional={
    "podLabels": MAPS,
    "podAnnotations": MAPS,
    "podSpec": st.fixed_dictionaries({}, optional={
        "nodeSelector": MAPS,
        "priorityClassName": WORDS,
        "runtimeClassName": WORDS,
        "schedulerName": WORDS,
        "tolerations": st.lists(st.fixed_dictionaries({"key": WORDS}), max_size=2),
        "hostAliases": st.lists(st.fixed_dictionaries({"ip": WORDS, "hostnames": st.just(["a"])}), max_size=2),
        "affinity": st.just({"podAffinity": {}}),
    }),
    "container": st.fixed_dictionaries({}, optional={
        "env": st.lists(st.fixed_dictionaries({"name": WORDS, "value": WORDS}), unique_by=lambda each: each["name"]),
        "resources": st.fixed_dictionaries({}, optional={"limits": st.dictionaries(WORDS, st.just("1"), max_size=3)}),
        "addCapabilities": st.lists(st.sampled_from(["IPC_LOCK", "SYS_NICE"]), unique=True),
    }),
    "sharedMemory": st.just("1Gi"),
    "caConfigMapRef": st.just({"name": "ca"}),
})  # fmt: skip
COMPUTES = st.fixed_dictionaries({"gpusPerNode": st.sampled_from([0, 1, 2])}, optional={
    "podLabels": MAPS,
    "podAnnotations": MAPS,
    "nodeSelector": MAPS,
    "priorityClassName": WORDS,
    "resources": st.fixed_dictionaries({}, optional={"limits": st.dictionaries(WORDS, st.just("2"), max_size=3)}),
})  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PROFILES, COMPUTES)
def test_apply_profile_scalars_win_as_enforced(profile: Body, compute: Body) -> None:
    template = _build_job(profile, {"compute": compute})["spec"]["template"]
    pod, limits = template["spec"], template["spec"]["containers"][0]["resources"]["limits"]
    pod_spec, enforce = profile.get("podSpec", {}), profile["enforce"]
    maps = [
        (template["metadata"]["labels"], profile.get("podLabels", {}), compute.get("podLabels", {})),
        (template["metadata"]["annotations"], profile.get("podAnnotations", {}), compute.get("podAnnotations", {})),
        (pod.get("nodeSelector", {}), pod_spec.get("nodeSelector", {}), compute.get("nodeSelector", {})),
        (
            limits,
            profile.get("container", {}).get("resources", {}).get("limits", {}),
            compute.get("resources", {}).get("limits", {}),
        ),
    ]
    for merged, of_profile, own in maps:
        assert (of_profile if enforce else own).items() <= merged.items()
        assert {**of_profile, **own}.keys() <= merged.keys()
    names = [pod_spec.get("priorityClassName"), compute.get("priorityClassName")]
    expected = [name for name in (names if enforce else reversed(names)) if name]
    assert pod.get("priorityClassName") == (expected[0] if expected else None)


@settings(max_examples=60, deadline=None)
@given(PROFILES, COMPUTES)
def test_apply_profile_changes_only_allowed_fields(profile: Body, compute: Body) -> None:
    plain, job = _build_job(None, {"compute": compute}), _build_job(profile, {"compute": compute})
    plain_pod, pod = _get_pod(plain), _get_pod(job)
    merged_fields = {*ALLOWED_POD_FIELDS, "containers", "volumes"}
    assert set(pod) <= set(plain_pod) | ALLOWED_POD_FIELDS
    assert {key: pod[key] for key in set(plain_pod) - merged_fields} == {
        key: plain_pod[key] for key in set(plain_pod) - merged_fields
    }
    (plain_container,), (container,) = plain_pod["containers"], pod["containers"]
    assert set(container) == set(plain_container)
    for key in set(container) - MERGED_CONTAINER_FIELDS:
        assert container[key] == plain_container[key]
    context = container["securityContext"]
    assert set(context["capabilities"].pop("add", [])) <= {"IPC_LOCK", "SYS_NICE"}
    assert context == plain_container["securityContext"]
    names = {volume["name"] for volume in pod["volumes"]} - {volume["name"] for volume in plain_pod["volumes"]}
    assert names <= {"shared-memory", "profile-ca"}
    environment, plain_environment = _get_environment(job), _get_environment(plain)
    assert {name: environment.get(name) for name in plain_environment if name != "NVIDIA_VISIBLE_DEVICES"} == {
        name: value for name, value in plain_environment.items() if name != "NVIDIA_VISIBLE_DEVICES"
    }
    changed = {key for key in job["spec"] if job["spec"][key] != plain["spec"][key]}
    assert changed <= {"template"}
