"""The Job: its fixed fields, and the fields that a spec can change."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from finetune_operator.api import FineTuneJob
from finetune_operator.resources.job import ConfigTooLargeError, build_job
from finetune_operator.settings import Settings
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


def test_job_config_maximal_spec_fits_one_variable(build: type[Builders]) -> None:
    def uri(filler: str) -> str:
        return "s3://bucket/" + filler * ((1024 - 12) // len(filler.encode()))

    names = ("system", "prompt", "completion", "chosen", "rejected", "label")
    line = "{%- if message['role'] == \"assistant\" %}$\n"
    template = line * (32768 // len(line))
    for filler in ('"', "$", "ü", "\U0001f600"):
        fields = dict.fromkeys(names, "\U00020000" * 32)
        source = {"uri": uri(filler), "format": "promptCompletion", "limit": 10**9, "fields": fields}
        validation = {"sources": [source] * 4}
        spec = {
            "model": {"uri": uri(filler), "adapterURI": uri(filler), "chatTemplate": template},
            "dataset": {"sources": [source] * 16, "validation": validation},
            "training": {"lora": {"targetModules": ["m" * 128] * 64}},
        }
        storage = {"endpoint": "https://" + "e" * 504, "region": "r" * 64}
        job = _build_job(build, {**spec, "output": {"uri": uri(filler)}, "storage": storage})
        assert len(_get_environment(job)["FINETUNE_CONFIG"].encode()) < MAX_ENVIRONMENT_STRING - len(
            "FINETUNE_CONFIG="
        ), filler


def test_job_config_too_large_for_a_variable_is_refused(build: type[Builders]) -> None:
    quotes = {"chatTemplate": '"' * 32768}  # each of which is two bytes in JSON
    long_uri = "s3://bucket/" + '"' * 1012
    source = {"uri": long_uri, "format": "promptCompletion"}
    dataset = {"sources": [source] * 16, "validation": {"sources": [source] * 4}}
    spec = {"model": {"uri": long_uri, **quotes}, "dataset": dataset}
    evaluation = {"samplePrompts": ['"' * 1000] * 16}
    with pytest.raises(ConfigTooLargeError, match=r"the config has \d+ bytes as JSON, .* more than 131071 in one"):
        _build_job(build, {**spec, "evaluation": evaluation, "output": {"uri": "s3://bucket/x"}})


def test_job_gpus_are_added_to_user_resources(build: type[Builders]) -> None:
    resources = {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "8"}}
    job = _build_job(build, {"compute": {"resources": resources}})
    assert _get_container(job)["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "1"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }  # fmt: skip
    amd = _build_job(build, {"compute": {"gpuResource": "amd.com/gpu"}})
    assert _get_container(amd)["resources"]["limits"] == {"amd.com/gpu": "1"}
    cpu = _build_job(build, {"compute": {"gpusPerNode": 0}})
    assert _get_container(cpu)["resources"] == {"requests": {}, "limits": {}}


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
    names = {"CONFIG", "JOB", "RUN_ID", "OUTCOME_PATH", "SCRATCH", "IMAGE", "STOP_SECONDS", "TEMPLATE_DATE"}
    trainer_variables = {f"FINETUNE_{name}" for name in names}
    assert set(_get_environment(_build_job(build))) == {
        "HOME",
        "TMPDIR",
        "AWS_EC2_METADATA_DISABLED",
        *trainer_variables,
    }


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
