"""Defaults of the installation for unset fields, which are applied to the Job only."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.policy.defaults import Defaults
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_operator.status.deadlines import get_startup_deadline_seconds
from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
STORE: Body = {
    "endpoint": "http://minio.storage:9000", "region": "eu-central-1", "addressing": "path",
    "checksums": "whenRequired", "credentialsSecretRef": {"name": "minio"},
}  # fmt: skip
DEFAULTS: Body = {
    "storage": STORE,
    "nodeSelector": {"pool": "gpus"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "serviceAccountName": "finetune",
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "batch",
    "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "32Gi"}},
    "startupDeadlineSeconds": 3600,
    "scratchStorageClassName": "fast",
    "allowNodeIdentity": True,
}
POD_FIELDS = ("nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets", "priorityClassName")


def _build_settings(defaults: Body) -> Settings:
    return Settings.model_validate({"defaults": defaults})


def _build_job(build: type[Builders], defaults: Body, spec: Body | None = None) -> Body:
    return build_job(FineTuneJob.model_validate(build.finetunejob(spec=spec)), _build_settings(defaults))


def _read_config(job: Body) -> Body:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (value,) = (variable["value"] for variable in container["env"] if variable["name"] == "FINETUNE_CONFIG")
    config: Body = json.loads(value.replace("$$", "$"))
    return config


def _get_pod_spec(job: Body) -> Body:
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def test_defaults_unset_fields_are_filled_in(build: type[Builders]) -> None:
    job = _build_job(build, DEFAULTS)
    pod = _get_pod_spec(job)
    assert {key: pod[key] for key in POD_FIELDS} == {key: DEFAULTS[key] for key in POD_FIELDS}
    scratch, keys = pod["volumes"]
    assert scratch["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "fast"
    assert keys["projected"]["sources"][0]["secret"]["name"] == "minio"
    config = _read_config(job)["storage"]
    assert config == {key: value for key, value in STORE.items() if key != "credentialsSecretRef"}


def test_defaults_set_fields_are_kept(build: type[Builders]) -> None:
    compute: Body = {
        "nodeSelector": {"pool": "mine"}, "tolerations": [{"key": "mine", "operator": "Exists"}],
        "serviceAccountName": "mine", "imagePullSecrets": [{"name": "mine"}], "priorityClassName": "mine",
    }  # fmt: skip
    scratch = {"size": "1Gi", "storageClassName": "mine"}
    pod = _get_pod_spec(_build_job(build, DEFAULTS, {"compute": {**compute, "scratch": scratch}}))
    assert {key: pod[key] for key in POD_FIELDS} == compute
    assert pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "mine"


def test_defaults_resources_fill_in_only_other_resources(build: type[Builders]) -> None:
    """A default request of 16Gi with an own limit of 8Gi would be an invalid pod."""
    job = _build_job(build, DEFAULTS, {"compute": {"gpusPerNode": 0, "resources": {"limits": {"memory": "8Gi"}}}})
    assert _get_pod_spec(job)["containers"][0]["resources"] == {
        "requests": {"cpu": "4"}, "limits": {"memory": "8Gi"},
    }  # fmt: skip


def test_defaults_startup_deadline_is_recorded_on_job(build: type[Builders]) -> None:
    job = _build_job(build, DEFAULTS)
    policy = read_run_policy(build.finetunejob())
    assert get_startup_deadline_seconds(policy, job) == 3600
    own = read_run_policy(build.finetunejob(spec={"startupDeadlineSeconds": 60}))
    assert get_startup_deadline_seconds(own, job) == 60
    assert get_startup_deadline_seconds(policy, _build_job(build, {})) is None


@pytest.mark.parametrize("storage", [{"endpoint": "https://s3.mine"}, {"endpoint": STORE["endpoint"]}])
def test_defaults_own_endpoint_takes_no_default_storage_fields(build: type[Builders], storage: Body) -> None:
    job = _build_job(build, {"storage": STORE}, {"storage": storage})
    assert _read_config(job)["storage"] == {**storage, "addressing": "auto", "checksums": "auto"}
    assert len(_get_pod_spec(job)["volumes"]) == 1  # no credentials for another store


def test_defaults_own_credentials_use_default_endpoint(build: type[Builders]) -> None:
    job = _build_job(build, {"storage": STORE}, {"storage": {"credentialsSecretRef": {"name": "mine"}}})
    assert _get_pod_spec(job)["volumes"][1]["projected"]["sources"][0]["secret"]["name"] == "mine"
    assert _read_config(job)["storage"]["endpoint"] == STORE["endpoint"]


def test_defaults_finetunejob_is_not_mutated(build: type[Builders]) -> None:
    job = FineTuneJob.model_validate(build.finetunejob())
    before = copy.deepcopy(job.to_json())
    build_job(job, _build_settings(DEFAULTS))
    assert job.to_json() == before


def test_defaults_empty_changes_nothing(build: type[Builders]) -> None:
    plain = build_job(FineTuneJob.model_validate(build.finetunejob()), Settings())
    assert _build_job(build, {}) == plain


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_applied_keep_config_digest(build: type[Builders], name: str) -> None:
    """The digest identifies the result and the checkpoints of a run."""
    config = _read_config(_build_job(build, {name: DEFAULTS[name]}))
    assert TrainerConfig.model_validate(config).digest() == TrainerConfig.from_manifest(build.finetunejob()).digest()


def test_defaults_every_field_is_covered() -> None:
    assert {field.alias for field in Defaults.model_fields.values()} == set(DEFAULTS)
