"""The file of compute profiles: what is accepted and rejected, which profile is chosen, and the digest of a profile."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.operator.builders import build_finetunejob

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.profiles import Profile, Profiles, ProfilesError, parse_profiles
from finetune_operator.policy.validation import describe_missing_profile, find_violations
from finetune_operator.settings import Settings

Body = dict[str, Any]


def _parse(file: Body) -> Profiles:
    return parse_profiles(json.dumps(file).encode())


def _parse_profile(profile: Body) -> Profile:
    return _parse({"profiles": {"a": profile}}).profiles["a"]


NODES: Body = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}]}
SPREAD: Body = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
CLAIM: Body = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}
GOOD: dict[str, Body] = {
    "empty": {},
    "reserved key of a runtime": {"podAnnotations": {"k8s.v1.cni.cncf.io/networks": "rail-0"}},
    "node affinity": {
        "podSpec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": NODES}}}
    },
    "spread": {"podSpec": {"topologySpreadConstraints": [SPREAD]}},
    "claim": {"podSpec": {"resourceClaims": [CLAIM]}, "container": {"resources": {"claims": [{"name": "gpu"}]}}},
    "resolver": {"podSpec": {"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}},
    "host alias": {"podSpec": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["s3"]}]}},
    "capability": {"container": {"addCapabilities": ["IPC_LOCK"]}},
    "bundle": {"caConfigMapRef": {"name": "ca"}},
}


@pytest.mark.parametrize("profile", GOOD.values(), ids=GOOD)
def test_profiles_valid_profile_is_read(profile: Body) -> None:
    assert _parse_profile(profile) == Profile.model_validate(profile)


BAD: dict[str, tuple[Body, str]] = {
    "host network": ({"podSpec": {"hostNetwork": True}}, "profiles.a.podSpec: unknown field hostNetwork; allowed"),
    "volumes": ({"podSpec": {"volumes": []}}, "profiles.a.podSpec: unknown field volumes; allowed"),
    "init container": ({"podSpec": {"initContainers": []}}, "unknown field initContainers"),
    "security context": ({"podSpec": {"securityContext": {}}}, "unknown field securityContext"),
    "service account": ({"podSpec": {"serviceAccountName": "admin"}}, "unknown field serviceAccountName"),
    "token": ({"podSpec": {"automountServiceAccountToken": True}}, "unknown field automountServiceAccountToken"),
    "container security context": ({"container": {"securityContext": {}}}, "profiles.a.container: unknown field"),
    "command": ({"container": {"command": ["sh"]}}, "unknown field command"),
    "mount": ({"container": {"volumeMounts": []}}, "unknown field volumeMounts"),
    "variables of a Secret": ({"container": {"envFrom": []}}, "unknown field envFrom"),
    "variable of a Secret": ({"container": {"env": [{"name": "A", "valueFrom": {}}]}}, "env.0: unknown field"),
    "snake case": ({"pod_spec": {}}, "profiles.a: unknown field pod_spec"),
    "misspelt affinity": ({"podSpec": {"affinity": {"nodeAfinity": {}}}}, "affinity: unknown field nodeAfinity"),
    "misspelt toleration": ({"podSpec": {"tolerations": [{"Key": "a"}]}}, "podSpec.tolerations.0.Key"),
    "all capabilities": ({"container": {"addCapabilities": ["ALL"]}}, "container.addCapabilities.0"),
    "administration": ({"container": {"addCapabilities": ["SYS_ADMIN"]}}, "container.addCapabilities.0"),
    "variable of the operator": ({"container": {"env": [{"name": "FINETUNE_CONFIG"}]}}, "FINETUNE_CONFIG is reserved"),
    "home": ({"container": {"env": [{"name": "HOME", "value": "/"}]}}, "HOME is reserved"),
    "identity of the node": ({"container": {"env": [{"name": "AWS_EC2_METADATA_DISABLED"}]}}, "is reserved"),
    "keys": ({"container": {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]}}, "is reserved"),
    "variable twice": ({"container": {"env": [{"name": "A"}, {"name": "A"}]}}, "container.env: A is set twice"),
    "bundle twice": (
        {"caConfigMapRef": {"name": "ca"}, "container": {"env": [{"name": "SSL_CERT_FILE", "value": "/x"}]}},
        "SSL_CERT_FILE is set twice",
    ),
    "line break in a name": ({"container": {"env": [{"name": "A\nB"}]}}, "container.env.0.name"),
    "label of the operator": ({"podLabels": {"finetune.dev/job": "other"}}, "podLabels: finetune.dev/job is reserved"),
    "label of the Job": ({"podLabels": {"batch.kubernetes.io/job-name": "x"}}, "is reserved"),
    "AppArmor": ({"podAnnotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "x"}}, "reserved"),
    "seccomp": ({"podAnnotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}, "is reserved"),
    "claim without source": ({"podSpec": {"resourceClaims": [{"name": "gpu"}]}}, "set exactly one of"),
    "unknown claim": ({"container": {"resources": {"claims": [{"name": "gpu"}]}}}, "not in podSpec.resourceClaims"),
    "quantity as a number": ({"container": {"resources": {"limits": {"cpu": 4}}}}, "container.resources.limits.cpu"),
    "deadline as a text": ({"startupDeadlineSeconds": "60"}, "profiles.a.startupDeadlineSeconds"),
    "flag as a text": ({"enforce": "yes"}, "profiles.a.enforce"),
}  # fmt: skip


@pytest.mark.parametrize(("profile", "message"), BAD.values(), ids=BAD)
def test_profiles_invalid_profile_names_field(profile: Body, message: str) -> None:
    with pytest.raises(ProfilesError) as error:
        _parse_profile(profile)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file: Invalid JSON"),
    "YAML": (b"profiles: {}", "the file: Invalid JSON"),
    "list": (b"[]", "the file: Input should be an object"),
    "other field": (b'{"profile": {}}', "the file: unknown field profile; allowed fields: defaultProfile, "),
    "default without profile": (b'{"defaultProfile": "a"}', "defaultProfile: there is no profile a"),
    "namespace without profile": (b'{"namespaceProfiles": {"team": "a"}}', "namespaceProfiles.team: there is no"),
    "not UTF-8": (b'{"profiles": {"\xff": {}}}', "the file: Invalid JSON"),
    "deep": (b'{"profiles":' + b"[" * 100_000, "the file: Invalid JSON"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_profiles_invalid_file_is_rejected(content: bytes, message: str) -> None:
    with pytest.raises(ProfilesError) as error:
        parse_profiles(content)
    assert message in str(error.value)


FILE: Body = {
    "profiles": {
        "gpu-a": {"podSpec": {"nodeSelector": {"pool": "a"}}},
        "gpu-b": {},
        "admin": {"podSpec": {"nodeSelector": {"pool": "b"}}, "enforce": True},
    },
    "defaultProfile": "gpu-a",
    "namespaceProfiles": {"team-b": "admin"},
}


@pytest.mark.parametrize(
    ("name", "namespace", "chosen"),
    [("gpu-b", "team-b", "gpu-b"), (None, "team-b", "admin"), (None, "team-a", "gpu-a")],
)
def test_profiles_choose_prefers_name_then_namespace_then_default(
    name: str | None, namespace: str, chosen: str
) -> None:
    profile = _parse(FILE).choose(name, namespace)
    assert profile
    assert profile.name == chosen


def test_profiles_without_default_choose_none() -> None:
    assert _parse({"profiles": {"a": {}}}).choose(None, "team") is None


class BoundsCase(NamedTuple):
    """`compute`, the bounds, and the paths of the violations, in a namespace whose default profile is `gpu-a`."""

    compute: Body
    bounds: Body
    violations: list[str]


BOUNDS_CASES = {
    "own default": BoundsCase({"profile": "gpu-a"}, {"allowedProfiles": ["none"]}, []),
    "profile of others": BoundsCase({"profile": "admin"}, {"allowedProfiles": ["gpu-*"]}, ["spec.compute.profile"]),
    "longer name": BoundsCase({"profile": "gpu-bb"}, {"allowedProfiles": ["gpu-b"]}, ["spec.compute.profile"]),
    "label of the profile": BoundsCase({}, {"requiredNodeSelector": {"pool": "a"}}, []),
    "label of an administrator": BoundsCase({}, {"requiredNodeSelector": {"pool": "other"}}, []),
    "label replaced": BoundsCase(
        {"nodeSelector": {"pool": "x"}}, {"requiredNodeSelector": {"pool": "a"}}, ["spec.compute.nodeSelector"]
    ),
    "label replaced, enforced": BoundsCase(
        {"profile": "admin", "nodeSelector": {"pool": "x"}}, {"requiredNodeSelector": {"pool": "b"}}, []
    ),
    "label of a profile that does not exist yet": BoundsCase(
        {"profile": "later"}, {"requiredNodeSelector": {"pool": "a"}}, []
    ),
    "label without profile": BoundsCase(
        {"profile": "gpu-b"}, {"requiredNodeSelector": {"pool": "a"}}, ["spec.compute.nodeSelector"]
    ),
}


@pytest.mark.parametrize("case", BOUNDS_CASES.values(), ids=BOUNDS_CASES)
def test_validation_profile_is_checked_against_bounds(case: BoundsCase) -> None:
    settings = Settings.model_validate({"bounds": case.bounds})
    finetunejob = FineTuneJob.model_validate(build_finetunejob(spec={"compute": case.compute}))
    violations = find_violations(finetunejob, settings, _parse(FILE))
    assert [violation.partition(":")[0] for violation in violations] == case.violations


def test_validation_missing_profile_lists_only_usable_profiles() -> None:
    bounds = Settings.model_validate({"bounds": {"allowedProfiles": ["gpu-b", "later"]}}).bounds
    message = describe_missing_profile("later", "team", _parse(FILE), bounds)
    assert "there is no compute profile later; profiles: gpu-a, gpu-b." in message
    assert "admin" not in message.replace("administrator", "")


LABELS = [("a", "1"), ("b", "2"), ("c", "3")]


@given(labels=st.permutations(LABELS), unset=st.permutations([("enforce", False), ("podSpec", {"tolerations": []})]))
def test_profile_hash_same_meaning_same_hash(labels: list[tuple[str, str]], unset: list[tuple[str, object]]) -> None:
    written = {**dict(unset), "podLabels": dict(labels)}
    assert _parse_profile(written).compute_hash() == _parse_profile({"podLabels": dict(LABELS)}).compute_hash()


def test_profile_hash_other_meaning_other_hash() -> None:
    hashes = {_parse_profile(profile).compute_hash() for profile in GOOD.values()}
    assert len(hashes) == len(GOOD)
