"""The Job: its fixed fields, and the fields that a spec can change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.support.operator.spec_samples import build_largest_spec

from finetune_operator.api import FineTuneJob
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_trainer.config.loader import read_config_text
from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
SETTINGS = Settings(trainer_image="registry/trainer:1")


def _build_job(
    build: type[Builders], spec: Body | None = None, name: str = "bot", settings: Settings = SETTINGS, **meta: Any
) -> Body:
    return build_job(FineTuneJob.model_validate(build.finetunejob(name, spec, **meta)), settings)


def _get_pod_spec(job: Body) -> Body:
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def _get_container(job: Body) -> Body:
    container: Body = _get_pod_spec(job)["containers"][0]
    return container


def _get_environment(job: Body) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in _get_container(job)["env"]}


def _expand_variables(value: str) -> str:
    """Expand a value as the kubelet does if no variable is defined.

    https://github.com/kubernetes/kubernetes/tree/master/third_party/forked/golang/expansion
    """
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: "$" if match[0] == "$$" else "EXPANDED", value)


def test_job_has_owner_labels_and_pod_failure_policy(build: type[Builders]) -> None:
    job = _build_job(build)
    assert (job["metadata"]["name"], job["metadata"]["namespace"]) == ("bot", "team")
    owner = job["metadata"]["ownerReferences"][0]
    assert owner == {
        "apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": "bot", "uid": "uid-bot",
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    assert job["metadata"]["labels"] == job["spec"]["template"]["metadata"]["labels"] == labels
    permanent, preempted, disrupted = job["spec"]["podFailurePolicy"]["rules"]
    assert (permanent["action"], permanent["onExitCodes"]["values"]) == ("FailJob", [42])
    assert (preempted["action"], preempted["onExitCodes"]["values"]) == ("Ignore", [76, 143])
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert job["spec"]["backoffLimit"] == 3


def test_job_pod_is_restricted(build: type[Builders]) -> None:
    pod, container = _get_pod_spec(_build_job(build)), _get_container(_build_job(build))
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["terminationMessagePolicy"] == "File"
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/scratch"]
    assert pod["volumes"] == [{"name": "scratch", "emptyDir": {"sizeLimit": "50Gi"}}]


def test_job_config_equals_trainer_config(build: type[Builders]) -> None:
    spec = {"model": {"tokenSecretRef": {"name": "hub"}}, "storage": {"credentialsSecretRef": {"name": "keys"}}}
    config = TrainerConfig.model_validate_json(_get_environment(_build_job(build, spec))["FINETUNE_CONFIG"])
    assert config.output.uri == "s3://bucket/adapters/team/bot"
    assert config == TrainerConfig.from_manifest(build.finetunejob(spec=spec))


@pytest.mark.parametrize(
    "text", ["$(HOME)", "$$(HOME)", "$$$(HOME)", "${HOME}", "$", "a; rm -rf /", "--flag", '"', "ü"]
)
def test_job_config_special_text_is_not_expanded(build: type[Builders], text: str) -> None:
    uri = f"s3://bucket/{text}"
    job = _build_job(build, {"dataset": {"sources": [{"uri": uri}]}})
    config = json.loads(_expand_variables(_get_environment(job)["FINETUNE_CONFIG"]))
    assert config["dataset"]["sources"][0]["uri"] == uri
    assert _get_container(job)["args"] == ["run"]


MAX_ENVIRONMENT_STRING = 32 * 4096 - 1
"""Bytes of a variable with its name that Linux passes to a program (`MAX_ARG_STRLEN`, without the final null)."""


MAX_ENVIRONMENT_BYTES = 2 * 1024 * 1024
"""Bytes of all variables and arguments together: a quarter of the default stack limit of 8 MiB."""


def _start_program(environment: dict[str, str]) -> dict[str, str]:
    """Pass the variables to a real program, as a container runtime does, and return those that it gets."""
    code = "import json, os; print(json.dumps({name: os.environ[name] for name in os.environ}))"
    expanded = {name: _expand_variables(value) for name, value in environment.items()}
    process = subprocess.run([sys.executable, "-c", code], env=expanded, capture_output=True, check=True)
    received: dict[str, str] = json.loads(process.stdout)
    return received


@pytest.mark.parametrize("filler", ["x", '"', "$", "\u00fc", "\U0001f600"])
def test_job_config_largest_valid_spec_starts(
    build: type[Builders], monkeypatch: pytest.MonkeyPatch, filler: str
) -> None:
    """A test that compares with the largest spec of the schema, so that it includes new fields."""
    finetunejob = FineTuneJob.model_validate(build.finetunejob(spec=build_largest_spec(filler)))
    environment = _get_environment(build_job(finetunejob, SETTINGS))
    received = _start_program(environment)
    assert sum(len(f"{name}={value}".encode()) for name, value in received.items()) < MAX_ENVIRONMENT_BYTES * 0.75
    for name, value in received.items():
        monkeypatch.setenv(name, value)
    assert read_config_text() == json.dumps(
        TrainerConfig.from_manifest(finetunejob.to_json()).to_json(), ensure_ascii=False, separators=(",", ":")
    )


def test_job_config_that_fits_is_in_one_variable(build: type[Builders]) -> None:
    names = [name for name in _get_environment(_build_job(build)) if name.startswith("FINETUNE_CONFIG")]
    assert names == ["FINETUNE_CONFIG"]


def test_job_gpus_are_added_to_user_resources(build: type[Builders]) -> None:
    resources = {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "8"}}
    job = _build_job(build, {"compute": {"resources": resources}})
    assert _get_container(job)["resources"] == {
        "requests": {"ephemeral-storage": "50Gi", "cpu": "4", "nvidia.com/gpu": "1"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }  # fmt: skip
    amd = _build_job(build, {"compute": {"gpuResource": "amd.com/gpu"}})
    assert _get_container(amd)["resources"]["limits"] == {"amd.com/gpu": "1"}
    cpu = _build_job(build, {"compute": {"gpusPerNode": 0}})
    assert _get_container(cpu)["resources"] == {"requests": {"ephemeral-storage": "50Gi"}, "limits": {}}


def test_job_credentials_are_mounted_under_fixed_names(build: type[Builders]) -> None:
    job = _build_job(build, {"storage": {"credentialsSecretRef": {"name": "keys"}}})
    environment, volume = _get_environment(job), _get_pod_spec(job)["volumes"][1]
    folder = environment["FINETUNE_S3_CREDENTIALS_DIR"]
    assert {"name": "s3-credentials", "mountPath": folder, "readOnly": True} in _get_container(job)["volumeMounts"]
    required, optional = volume["projected"]["sources"]
    assert [item["path"] for item in required["secret"]["items"]] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert "optional" not in required["secret"]
    assert [item["path"] for item in optional["secret"]["items"]] == ["AWS_SESSION_TOKEN"]
    assert optional["secret"]["optional"] is True


KEYS = {"storage": {"credentialsSecretRef": {"name": "keys"}}}


@pytest.mark.parametrize("spec", [{}, KEYS], ids=["no Secret", "Secret"])
@pytest.mark.parametrize("default", [{}, KEYS["storage"]], ids=["no default Secret", "default Secret"])
@pytest.mark.parametrize("allowed", [False, True], ids=["not allowed", "allowed"])
def test_job_node_identity_only_if_allowed_and_without_secret(
    build: type[Builders], spec: Body, default: Body, allowed: bool
) -> None:
    settings = Settings.model_validate({"defaults": {"storage": default, "allowNodeIdentity": allowed}})
    job = build_job(FineTuneJob.model_validate(build.finetunejob(spec=spec)), settings)
    disabled = _get_environment(job).get("AWS_EC2_METADATA_DISABLED") == "true"
    assert disabled is not (allowed and not spec and not default)


def test_job_hub_token_ca_and_claim_are_mounted_read_only(build: type[Builders]) -> None:
    job = _build_job(
        build, {"model": {"tokenSecretRef": {"name": "hub"}}, "storage": {"caConfigMapRef": {"name": "ca", "key": "k"}}}
    )
    environment = _get_environment(job)
    assert environment["FINETUNE_HUB_TOKEN_FILE"] == "/etc/finetune/hub/HF_TOKEN"
    assert environment["AWS_CA_BUNDLE"] == "/etc/finetune/ca/ca.crt"
    _, ca, hub = _get_pod_spec(job)["volumes"]
    assert ca["configMap"] == {"name": "ca", "items": [{"key": "k", "path": "ca.crt"}]}
    assert hub["secret"]["items"] == [{"key": "HF_TOKEN", "path": "HF_TOKEN"}]
    job = _build_job(build, {"model": {"uri": "pvc://models.big/llama/8b"}})
    assert _get_pod_spec(job)["volumes"][1]["persistentVolumeClaim"] == {"claimName": "models.big", "readOnly": True}
    mount = _get_container(job)["volumeMounts"][1]
    assert mount["readOnly"] is True
    assert mount["mountPath"] == _get_environment(job)["FINETUNE_CLAIMS_DIR"] + "/models.big"


def test_job_dataset_token_is_mounted_apart_from_model_token(build: type[Builders]) -> None:
    dataset = {"sources": [{"uri": "hf://datasets/org/name"}], "tokenSecretRef": {"name": "data-hub"}}
    job = _build_job(build, {"model": {"tokenSecretRef": {"name": "hub"}}, "dataset": dataset})
    environment = _get_environment(job)
    assert environment["FINETUNE_HUB_TOKEN_FILE"] == "/etc/finetune/hub/HF_TOKEN"
    assert environment["FINETUNE_DATASET_HUB_TOKEN_FILE"] == "/etc/finetune/dataset-hub/HF_TOKEN"
    secrets = {volume["name"]: volume["secret"] for volume in _get_pod_spec(job)["volumes"] if "secret" in volume}
    assert {name: secret["secretName"] for name, secret in secrets.items()} == {
        "hub-token": "hub",
        "dataset-hub-token": "data-hub",
    }
    assert secrets["dataset-hub-token"]["items"] == [{"key": "HF_TOKEN", "path": "HF_TOKEN"}]
    assert {"name": "dataset-hub-token", "mountPath": "/etc/finetune/dataset-hub", "readOnly": True} in _get_container(
        job
    )["volumeMounts"]
    assert "tokenSecretRef" not in environment["FINETUNE_CONFIG"]
    without_token = _build_job(build, {"dataset": {"sources": dataset["sources"]}})
    assert "FINETUNE_DATASET_HUB_TOKEN_FILE" not in _get_environment(without_token)


def test_job_each_claim_of_model_and_data_is_mounted_once(build: type[Builders]) -> None:
    long_name = "c" * 253
    dataset = {
        "sources": [{"uri": "pvc://rows/a.jsonl"}, {"uri": "s3://bucket/b"}, {"uri": f"pvc://{long_name}/**/*.csv"}],
        "validation": {"sources": [{"uri": "pvc://rows/held-out/"}, {"uri": "pvc://models/v.jsonl"}]},
    }
    job = _build_job(build, {"model": {"uri": "pvc://models/llama"}, "dataset": dataset})
    claims = [volume for volume in _get_pod_spec(job)["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume["persistentVolumeClaim"] for volume in claims] == [
        {"claimName": name, "readOnly": True} for name in ("models", "rows", long_name)
    ]
    names = [volume["name"] for volume in claims]
    assert all(re.fullmatch("[a-z0-9-]{1,63}", name) for name in names)
    folder = _get_environment(job)["FINETUNE_CLAIMS_DIR"]
    mounts = {mount["name"]: mount for mount in _get_container(job)["volumeMounts"]}
    assert [mounts[name] for name in names] == [
        {"name": name, "mountPath": f"{folder}/{claim}", "readOnly": True}
        for name, claim in zip(names, ("models", "rows", long_name), strict=True)
    ]
    assert "FINETUNE_CLAIMS_DIR" not in _get_environment(_build_job(build))


def test_job_template_date_is_day_of_creation(build: type[Builders]) -> None:
    job = _build_job(build, creationTimestamp="2026-11-30T23:59:59Z")
    assert _get_environment(job)["FINETUNE_TEMPLATE_DATE"] == "2026-11-30"


def test_job_signing_key_is_mounted_as_file(build: type[Builders]) -> None:
    job = _build_job(build, {"output": {"signing": {"keySecretRef": {"name": "team-key"}}}})
    assert _get_pod_spec(job)["volumes"][1]["secret"] == {
        "secretName": "team-key",
        "items": [{"key": "signing-key.pem", "path": "signing-key.pem"}],
        "defaultMode": 0o440,
    }  # fmt: skip
    assert _get_container(job)["volumeMounts"][1] == {
        "name": "signing", "mountPath": "/etc/finetune/signing", "readOnly": True,
    }  # fmt: skip
    assert _get_environment(job)["FINETUNE_SIGNING_KEY_FILE"] == "/etc/finetune/signing/signing-key.pem"


def test_job_tracking_secret_is_mounted_and_uri_is_in_config(build: type[Builders]) -> None:
    tracking = {"tool": "mlflow", "uri": "http://mlflow:5000", "credentialsSecretRef": {"name": "mlflow"}}
    job = _build_job(build, {"tracking": tracking})
    environment = _get_environment(job)
    config = TrainerConfig.model_validate_json(environment["FINETUNE_CONFIG"])
    assert config.tracking
    assert config.tracking.to_json() == {"tool": "mlflow", "uri": "http://mlflow:5000"}
    assert environment["FINETUNE_JOB"] == "team/bot"
    folder = environment["FINETUNE_TRACKING_CREDENTIALS_DIR"]
    assert {"name": "tracking", "mountPath": folder, "readOnly": True} in _get_container(job)["volumeMounts"]
    secret = _get_pod_spec(job)["volumes"][1]["secret"]
    assert (secret["secretName"], secret["optional"]) == ("mlflow", True)
    assert [item["key"] for item in secret["items"]] == [
        "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    ]  # fmt: skip
    del tracking["credentialsSecretRef"]
    assert "FINETUNE_TRACKING_CREDENTIALS_DIR" not in _get_environment(_build_job(build, {"tracking": tracking}))


def test_job_secrets_of_endpoints_are_mounted_by_name_and_not_in_the_config(build: type[Builders]) -> None:
    secret = {"credentialsSecretRef": {"name": "judge-key"}}
    endpoints = [{"name": "open", "uri": "http://a"}, {"name": "judges", "uri": "http://judges:8000/v1", **secret}]
    job = _build_job(build, {"evaluation": {"endpoints": endpoints}})
    environment = _get_environment(job)
    config = TrainerConfig.model_validate_json(environment["FINETUNE_CONFIG"])
    assert [endpoint.name for endpoint in config.evaluation.endpoints] == ["open", "judges"]
    assert "judge-key" not in environment["FINETUNE_CONFIG"]
    folder = environment["FINETUNE_ENDPOINT_CREDENTIALS_DIR"]
    assert {"name": "endpoints", "mountPath": folder, "readOnly": True} in _get_container(job)["volumeMounts"]
    volume = next(each for each in _get_pod_spec(job)["volumes"] if each["name"] == "endpoints")
    items = [{"key": "api-key", "path": "judges/api-key"}]
    assert volume["projected"]["sources"] == [{"secret": {"name": "judge-key", "items": items}}]
    del endpoints[1]["credentialsSecretRef"]
    environment = _get_environment(_build_job(build, {"evaluation": {"endpoints": endpoints}}))
    assert "FINETUNE_ENDPOINT_CREDENTIALS_DIR" not in environment


def test_job_scratch_with_storage_class_is_ephemeral_volume(build: type[Builders]) -> None:
    job = _build_job(build, {"compute": {"scratch": {"size": "1Ti", "storageClassName": "fast"}}})
    claim = _get_pod_spec(job)["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "1Ti")


def test_job_compute_fields_reach_pod(build: type[Builders]) -> None:
    compute = {
        "image": "other:2",
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "s3-reader",
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "low",
        "terminationGracePeriodSeconds": 300,
    }
    pod = _get_pod_spec(_build_job(build, {"compute": compute}))
    image = compute.pop("image")
    assert pod["containers"][0]["image"] == image
    assert {key: pod[key] for key in compute} == compute
    assert "serviceAccountName" not in _get_pod_spec(_build_job(build))


def test_job_environment_is_closed_list(build: type[Builders]) -> None:
    names = {
        "CONFIG",
        "JOB",
        "RUN_ID",
        "OUTCOME_PATH",
        "SCRATCH",
        "SCRATCH_BYTES",
        "IMAGE",
        "STOP_SECONDS",
        "TEMPLATE_DATE",
    }
    trainer_variables = {f"FINETUNE_{name}" for name in names}
    assert set(_get_environment(_build_job(build))) == {
        "HOME",
        "TMPDIR",
        "AWS_EC2_METADATA_DISABLED",
        *trainer_variables,
    }


SCRATCH_SIZES = {
    "default": ({}, "53687091200", "50Gi"),
    "decimal": ({"scratch": {"size": "1.5G"}}, "1500000000", "1.5G"),
    "plain number": ({"scratch": {"size": "1000"}}, "1000", "1000"),
    "lower limit": ({"resources": {"limits": {"ephemeral-storage": "20Gi"}}}, "21474836480", "20Gi"),
    "higher limit": ({"resources": {"limits": {"ephemeral-storage": "60G"}}}, "53687091200", "50Gi"),
    "own request": ({"resources": {"requests": {"ephemeral-storage": "70Gi"}}}, "53687091200", "70Gi"),
    "storage class": ({"scratch": {"size": "1Ti", "storageClassName": "fast"}}, "1099511627776", None),
    "storage class and limit": (
        {
            "scratch": {"size": "1Ti", "storageClassName": "fast"},
            "resources": {"limits": {"ephemeral-storage": "1Gi"}},
        },
        "1099511627776",
        None,
    ),
}


@pytest.mark.parametrize(("compute", "size", "request_"), SCRATCH_SIZES.values(), ids=SCRATCH_SIZES)
def test_job_scratch_size_is_requested_and_known_to_trainer(
    build: type[Builders], compute: Body, size: str, request_: str | None
) -> None:
    job = _build_job(build, {"compute": compute})
    assert _get_environment(job)["FINETUNE_SCRATCH_BYTES"] == size
    assert _get_container(job)["resources"]["requests"].get("ephemeral-storage") == request_


@pytest.mark.parametrize(("size", "limit"), [("0", "1"), ("0.0Gi", "1"), ("00m", "1"), ("5Gi", "5Gi")])
def test_job_scratch_on_disk_of_node_is_always_limited(build: type[Builders], size: str, limit: str) -> None:
    """https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/eviction/eviction_manager.go"""
    job = _build_job(build, {"compute": {"scratch": {"size": size}}})
    (scratch,) = (volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "scratch")
    assert scratch["emptyDir"] == {"sizeLimit": limit}


@pytest.mark.parametrize(("grace", "seconds"), [(None, "100"), (900, "880"), (30, "10"), (5, "1")])
def test_job_stop_seconds_follow_grace_period(build: type[Builders], grace: int | None, seconds: str) -> None:
    compute = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    job = _build_job(build, {"compute": compute})
    assert _get_environment(job)["FINETUNE_STOP_SECONDS"] == seconds
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == (grace or 120)


def test_job_pull_policy_comes_from_settings(build: type[Builders]) -> None:
    assert "imagePullPolicy" not in _get_container(_build_job(build))
    never = SETTINGS.model_copy(update={"trainer_image_pull_policy": "Never"})
    assert _get_container(_build_job(build, settings=never))["imagePullPolicy"] == "Never"


def test_job_output_uri_too_long_after_substitution_raises(build: type[Builders]) -> None:
    with pytest.raises(ValidationError):
        _build_job(build, {"output": {"uri": "s3://bucket/" + "{namespace}" * 90}}, name="b" * 52, namespace="n" * 63)
