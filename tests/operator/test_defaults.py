"""What a FineTuneJob leaves open comes from the installation, in the Job alone."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.defaults import Defaults
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tests.operator.bodies import Build

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
    "scratchStorageClassName": "fast",
    "allowNodeIdentity": True,
}
POD_FIELDS = ("nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets", "priorityClassName")


def _settings(defaults: Body) -> Settings:
    return Settings.model_validate({"defaults": defaults})


def _job(build: type[Build], defaults: Body, spec: Body | None = None) -> Body:
    return build_job(FineTuneJob.model_validate(build.stored(spec=spec)), _settings(defaults))


def _config(job: Body) -> Body:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (value,) = (each["value"] for each in container["env"] if each["name"] == "FINETUNE_CONFIG")
    config: Body = json.loads(value.replace("$$", "$"))
    return config


def _pod(job: Body) -> Body:
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def test_what_is_left_open_is_filled_in(build: type[Build]) -> None:
    job = _job(build, DEFAULTS)
    pod = _pod(job)
    assert {key: pod[key] for key in POD_FIELDS} == {key: DEFAULTS[key] for key in POD_FIELDS}
    scratch, keys = pod["volumes"]
    assert scratch["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "fast"
    assert keys["projected"]["sources"][0]["secret"]["name"] == "minio"
    config = _config(job)["storage"]
    assert config == {key: value for key, value in STORE.items() if key != "credentialsSecretRef"}


def test_what_is_asked_for_is_kept(build: type[Build]) -> None:
    asked: Body = {
        "nodeSelector": {"pool": "mine"}, "tolerations": [{"key": "mine", "operator": "Exists"}],
        "serviceAccountName": "mine", "imagePullSecrets": [{"name": "mine"}], "priorityClassName": "mine",
    }  # fmt: skip
    scratch = {"size": "1Gi", "storageClassName": "mine"}
    pod = _pod(_job(build, DEFAULTS, {"compute": {**asked, "scratch": scratch}}))
    assert {key: pod[key] for key in POD_FIELDS} == asked
    assert pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "mine"


@pytest.mark.parametrize("storage", [{"endpoint": "https://s3.mine"}, {"endpoint": STORE["endpoint"]}])
def test_one_that_names_its_store_describes_it_by_itself(build: type[Build], storage: Body) -> None:
    job = _job(build, {"storage": STORE}, {"storage": storage})
    assert _config(job)["storage"] == {**storage, "addressing": "auto", "checksums": "auto"}
    assert len(_pod(job)["volumes"]) == 1  # and no keys to another one


def test_own_keys_to_the_stores_of_all(build: type[Build]) -> None:
    job = _job(build, {"storage": STORE}, {"storage": {"credentialsSecretRef": {"name": "mine"}}})
    assert _pod(job)["volumes"][1]["projected"]["sources"][0]["secret"]["name"] == "mine"
    assert _config(job)["storage"]["endpoint"] == STORE["endpoint"]


def test_a_finetunejob_is_left_as_it_is(build: type[Build]) -> None:
    job = FineTuneJob.model_validate(build.stored())
    before = copy.deepcopy(job.to_json())
    build_job(job, _settings(DEFAULTS))
    assert job.to_json() == before


def test_no_defaults_change_nothing(build: type[Build]) -> None:
    plain = build_job(FineTuneJob.model_validate(build.stored()), Settings())
    assert _job(build, {}) == plain


@pytest.mark.parametrize("name", DEFAULTS)
def test_no_default_makes_another_run_of_it(build: type[Build], name: str) -> None:
    """A run that finds its result or its checkpoints asks for the same digest."""
    config = _config(_job(build, {name: DEFAULTS[name]}))
    assert TrainerConfig.model_validate(config).digest() == TrainerConfig.from_manifest(build.stored()).digest()


def test_every_default_is_tried_here() -> None:
    assert {field.alias for field in Defaults.model_fields.values()} == set(DEFAULTS)
