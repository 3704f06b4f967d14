"""The Job: what it must always be, what a spec may change, and what no spec can."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from finetune_operator.api import FineTuneJob
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tests.operator.bodies import Build

Body = dict[str, Any]
SETTINGS = Settings(trainer_image="registry/trainer:1")


def _job(
    build: type[Build], spec: Body | None = None, name: str = "bot", settings: Settings = SETTINGS, **meta: Any
) -> Body:
    return build_job(FineTuneJob.model_validate(build.stored(name, spec, **meta)), settings)


def _pod(job: Body) -> Body:
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def _container(job: Body) -> Body:
    container: Body = _pod(job)["containers"][0]
    return container


def _environment(job: Body) -> dict[str, str]:
    return {each["name"]: each["value"] for each in _container(job)["env"]}


def _expanded(value: str) -> str:
    """As the kubelet expands a value in which no variable is defined: k8s.io/kubernetes/third_party/forked/golang."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: "$" if match[0] == "$$" else "EXPANDED", value)


def test_the_job_is_ours_and_the_failure_policy_tells_exit_codes_apart(build: type[Build]) -> None:
    job = _job(build)
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


def test_the_pod_is_restricted(build: type[Build]) -> None:
    pod, container = _pod(_job(build)), _container(_job(build))
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["terminationMessagePolicy"] == "File"
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/scratch"]
    assert pod["volumes"] == [{"name": "scratch", "emptyDir": {"sizeLimit": "50Gi"}}]


def test_the_config_is_what_the_trainer_reads(build: type[Build]) -> None:
    spec = {"model": {"tokenSecretRef": {"name": "hub"}}, "storage": {"credentialsSecretRef": {"name": "keys"}}}
    config = TrainerConfig.model_validate_json(_environment(_job(build, spec))["FINETUNE_CONFIG"])
    assert config.output.uri == "s3://bucket/adapters/team/bot"
    assert config == TrainerConfig.from_manifest(build.stored(spec=spec))


@pytest.mark.parametrize(
    "text", ["$(HOME)", "$$(HOME)", "$$$(HOME)", "${HOME}", "$", "a; rm -rf /", "--flag", '"', "ü"]
)
def test_nothing_in_a_config_is_expanded(build: type[Build], text: str) -> None:
    uri = f"s3://bucket/{text}"
    job = _job(build, {"dataset": {"sources": [{"uri": uri}]}})
    config = json.loads(_expanded(_environment(job)["FINETUNE_CONFIG"]))
    assert config["dataset"]["sources"][0]["uri"] == uri
    assert _container(job)["args"] == ["run"]


def test_a_maximal_spec_fits_into_one_variable(build: type[Build]) -> None:
    def uri(filler: str) -> str:
        return "s3://bucket/" + filler * ((1024 - 12) // len(filler.encode()))

    names = ("system", "prompt", "completion", "chosen", "rejected", "label")
    for filler in ('"', "$", "ü", "\U0001f600"):
        fields = dict.fromkeys(names, "\U00020000" * 32)
        source = {"uri": uri(filler), "format": "promptCompletion", "limit": 10**9, "fields": fields}
        validation = {"sources": [source] * 4}
        template = filler * (8192 // len(filler.encode()))
        spec = {
            "model": {"uri": uri(filler), "adapterURI": uri(filler), "chatTemplate": template},
            "dataset": {"sources": [source] * 16, "validation": validation},
            "training": {"lora": {"targetModules": ["m" * 128] * 64}},
        }
        storage = {"endpoint": "https://" + "e" * 504, "region": "r" * 64}
        job = _job(build, {**spec, "output": {"uri": uri(filler)}, "storage": storage})
        assert len(_environment(job)["FINETUNE_CONFIG"].encode()) < 96 * 1024, filler


def test_gpus_are_asked_for_beside_the_users_resources(build: type[Build]) -> None:
    resources = {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "8"}}
    job = _job(build, {"compute": {"resources": resources}})
    assert _container(job)["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "1"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }  # fmt: skip
    amd = _job(build, {"compute": {"gpuResource": "amd.com/gpu"}})
    assert _container(amd)["resources"]["limits"] == {"amd.com/gpu": "1"}
    cpu = _job(build, {"compute": {"gpusPerNode": 0}})
    assert _container(cpu)["resources"] == {"requests": {}, "limits": {}}


def test_credentials_are_files_with_fixed_names(build: type[Build]) -> None:
    job = _job(build, {"storage": {"credentialsSecretRef": {"name": "keys"}}})
    environment, volume = _environment(job), _pod(job)["volumes"][1]
    folder = environment["FINETUNE_S3_CREDENTIALS_DIR"]
    assert {"name": "s3-credentials", "mountPath": folder, "readOnly": True} in _container(job)["volumeMounts"]
    required, optional = volume["projected"]["sources"]
    assert [each["path"] for each in required["secret"]["items"]] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert "optional" not in required["secret"]
    assert [each["path"] for each in optional["secret"]["items"]] == ["AWS_SESSION_TOKEN"]
    assert optional["secret"]["optional"] is True


KEYS = {"storage": {"credentialsSecretRef": {"name": "keys"}}}


@pytest.mark.parametrize("spec", [{}, KEYS], ids=["no Secret", "a Secret"])
@pytest.mark.parametrize("default", [{}, KEYS["storage"]], ids=["no default Secret", "a default Secret"])
@pytest.mark.parametrize("allowed", [False, True], ids=["not allowed", "allowed"])
def test_node_identity_is_used_only_if_allowed_and_never_beside_a_secret(
    build: type[Build], spec: Body, default: Body, allowed: bool
) -> None:
    settings = Settings.model_validate({"defaults": {"storage": default, "allowNodeIdentity": allowed}})
    job = build_job(FineTuneJob.model_validate(build.stored(spec=spec)), settings)
    disabled = _environment(job).get("AWS_EC2_METADATA_DISABLED") == "true"
    assert disabled is not (allowed and not spec and not default)


def test_hub_token_ca_and_claim_are_mounted_read_only(build: type[Build]) -> None:
    job = _job(
        build, {"model": {"tokenSecretRef": {"name": "hub"}}, "storage": {"caConfigMapRef": {"name": "ca", "key": "k"}}}
    )
    environment = _environment(job)
    assert environment["FINETUNE_HUB_TOKEN_FILE"] == "/etc/finetune/hub/HF_TOKEN"
    assert environment["AWS_CA_BUNDLE"] == "/etc/finetune/ca/ca.crt"
    _, ca, hub = _pod(job)["volumes"]
    assert ca["configMap"] == {"name": "ca", "items": [{"key": "k", "path": "ca.crt"}]}
    assert hub["secret"]["items"] == [{"key": "HF_TOKEN", "path": "HF_TOKEN"}]
    job = _job(build, {"model": {"uri": "pvc://models.big/llama/8b"}})
    assert _pod(job)["volumes"][1]["persistentVolumeClaim"] == {"claimName": "models.big", "readOnly": True}
    mount = _container(job)["volumeMounts"][1]
    assert mount["readOnly"] is True
    assert mount["mountPath"] == _environment(job)["FINETUNE_CLAIMS_DIR"] + "/models.big"


def test_the_key_to_sign_with_is_a_file(build: type[Build]) -> None:
    job = _job(build, {"output": {"signing": {"keySecretRef": {"name": "team-key"}}}})
    assert _pod(job)["volumes"][1]["secret"] == {
        "secretName": "team-key",
        "items": [{"key": "signing-key.pem", "path": "signing-key.pem"}],
        "defaultMode": 0o440,
    }  # fmt: skip
    assert _container(job)["volumeMounts"][1] == {
        "name": "signing", "mountPath": "/etc/finetune/signing", "readOnly": True,
    }  # fmt: skip
    assert _environment(job)["FINETUNE_SIGNING_KEY_FILE"] == "/etc/finetune/signing/signing-key.pem"


def test_a_trackers_secret_is_files_and_its_address_is_config(build: type[Build]) -> None:
    tracking = {"tool": "mlflow", "uri": "http://mlflow:5000", "credentialsSecretRef": {"name": "mlflow"}}
    job = _job(build, {"tracking": tracking})
    environment = _environment(job)
    config = TrainerConfig.model_validate_json(environment["FINETUNE_CONFIG"])
    assert config.tracking
    assert config.tracking.to_json() == {"tool": "mlflow", "uri": "http://mlflow:5000"}
    assert environment["FINETUNE_JOB"] == "team/bot"
    folder = environment["FINETUNE_TRACKING_CREDENTIALS_DIR"]
    assert {"name": "tracking", "mountPath": folder, "readOnly": True} in _container(job)["volumeMounts"]
    secret = _pod(job)["volumes"][1]["secret"]
    assert (secret["secretName"], secret["optional"]) == ("mlflow", True)
    assert [each["key"] for each in secret["items"]] == [
        "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    ]  # fmt: skip
    del tracking["credentialsSecretRef"]
    assert "FINETUNE_TRACKING_CREDENTIALS_DIR" not in _environment(_job(build, {"tracking": tracking}))


def test_scratch_may_be_a_volume_of_a_class(build: type[Build]) -> None:
    job = _job(build, {"compute": {"scratch": {"size": "1Ti", "storageClassName": "fast"}}})
    claim = _pod(job)["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "1Ti")


def test_pod_fields_are_passed_on(build: type[Build]) -> None:
    compute = {
        "image": "other:2",
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "s3-reader",
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "low",
        "terminationGracePeriodSeconds": 300,
    }
    pod = _pod(_job(build, {"compute": compute}))
    image = compute.pop("image")
    assert pod["containers"][0]["image"] == image
    assert {key: pod[key] for key in compute} == compute
    assert "serviceAccountName" not in _pod(_job(build))


def test_the_environment_is_a_closed_list(build: type[Build]) -> None:
    names = {"CONFIG", "JOB", "RUN_ID", "OUTCOME_PATH", "SCRATCH", "IMAGE", "STOP_SECONDS"}
    own = {f"FINETUNE_{name}" for name in names}
    assert set(_environment(_job(build))) == {"HOME", "TMPDIR", "AWS_EC2_METADATA_DISABLED", *own}


@pytest.mark.parametrize(("grace", "seconds"), [(None, "100"), (900, "880"), (30, "10"), (5, "1")])
def test_the_trainer_knows_how_long_it_may_save(build: type[Build], grace: int | None, seconds: str) -> None:
    compute = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    job = _job(build, {"compute": compute})
    assert _environment(job)["FINETUNE_STOP_SECONDS"] == seconds
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == (grace or 120)


def test_the_pull_policy_is_the_installations(build: type[Build]) -> None:
    assert "imagePullPolicy" not in _container(_job(build))
    never = SETTINGS.model_copy(update={"trainer_image_pull_policy": "Never"})
    assert _container(_job(build, settings=never))["imagePullPolicy"] == "Never"


def test_an_output_that_grows_too_long_is_an_error(build: type[Build]) -> None:
    with pytest.raises(ValidationError):
        _job(build, {"output": {"uri": "s3://bucket/" + "{namespace}" * 90}}, name="b" * 52, namespace="n" * 63)
