"""The Job of a task pod: the credentials of its run, and nothing that makes it look like a trainer."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.api.labels import JOB_LABEL, KUEUE_LABELS, TASK_LABEL
from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.profiles import ChosenProfile, Profile
from finetune_operator.resources.job import build_job
from finetune_operator.resources.task_job import Task, TaskKind, build_clean_job, build_task_job, read_task_config
from finetune_operator.settings import Settings
from finetune_trainer.contract import (
    TASK_CONFIG_ENV,
    CheckInputsTask,
    DataSource,
    ScheduleReportTask,
    SweepReportTask,
    TaskConfig,
    join_parts,
)

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
SPEC: Body = {
    "storage": {
        "endpoint": "https://s3.example",
        "credentialsSecretRef": {"name": "s3"},
        "caConfigMapRef": {"name": "company-ca"},
    },
    "compute": {
        "gpusPerNode": 8,
        "nodes": 4,
        "image": "tenant.example/trainer:1",
        "serviceAccountName": "finetune",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "podLabels": {"team": "a"},
        "podAnnotations": {"example.com/a": "b"},
    },
    "tracking": {"tool": "wandb", "credentialsSecretRef": {"name": "wandb"}},
}
NOT_BEFORE = "2026-12-07T08:00:00Z"


def _build(build: type[Builders], spec: dict[str, Any] = SPEC, not_before: str | None = None, **settings: Any) -> Body:
    labels = dict.fromkeys(KUEUE_LABELS, "gpus")
    finetunejob = FineTuneJob.model_validate(build.finetunejob(spec=spec, labels=labels))
    return build_clean_job(finetunejob, Settings(**settings), not_before)


def test_task_job_has_access_of_run_and_no_gpu(build: type[Builders]) -> None:
    job = _build(build, task_image="registry.example/task:1")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    trainer = build_job(FineTuneJob.model_validate(build.finetunejob(spec=SPEC)), Settings())["spec"]["template"][
        "spec"
    ]
    for field in ("serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "securityContext"):
        assert pod[field] == trainer[field]
    assert container["securityContext"] == trainer["containers"][0]["securityContext"]
    assert [volume["name"] for volume in pod["volumes"]] == ["s3-credentials", "ca"]
    assert all(volume in trainer["volumes"] for volume in pod["volumes"])
    assert (container["image"], container["args"]) == ("registry.example/task:1", ["task"])
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "none"
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"
    trainer_environment = {variable["name"]: variable["value"] for variable in trainer["containers"][0]["env"]}
    for name in ("FINETUNE_S3_CREDENTIALS_DIR", "AWS_CA_BUNDLE", "FINETUNE_OUTCOME_PATH"):
        assert environment[name] == trainer_environment[name]
    assert "completions" not in job["spec"]


def test_task_job_has_access_settings_of_profile_but_no_devices(build: type[Builders]) -> None:
    container: Body = {
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "resources": {"limits": {"rdma/hca": "1"}},
        "addCapabilities": ["IPC_LOCK"],
    }
    pod_spec = {"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "h100"}}
    fields = {"podLabels": {"cost": "7"}, "caConfigMapRef": {"name": "proxy-ca"}, "sharedMemory": "8Gi"}
    profile = Profile.model_validate({**fields, "podSpec": pod_spec, "container": container})
    finetunejob = FineTuneJob.model_validate(build.finetunejob(spec={}))
    job = build_clean_job(finetunejob, Settings(), chosen_profile=ChosenProfile("h100", profile))
    template = job["spec"]["template"]
    (task,) = template["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in task["env"]}
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert environment["AWS_CA_BUNDLE"] in {f"{mount['mountPath']}/ca.crt" for mount in task["volumeMounts"]}
    assert template["metadata"]["labels"]["cost"] == "7"
    assert task["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "rdma/hca" not in task["resources"]["limits"]
    assert not {"runtimeClassName", "nodeSelector"} & template["spec"].keys()


def test_task_job_labels_match_no_selector_of_trainers_or_queues(build: type[Builders]) -> None:
    job = _build(build)
    template_labels = job["spec"]["template"]["metadata"]["labels"]
    assert template_labels == {"team": "a", **job["metadata"]["labels"]}
    assert not {JOB_LABEL, *KUEUE_LABELS} & template_labels.keys()
    assert template_labels[TASK_LABEL] == "clean"


def test_task_job_of_ended_run_is_owned_and_starts_at_once(build: type[Builders]) -> None:
    job = _build(build)
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["kind"], job["spec"]["suspend"]) == ("uid-bot", "FineTuneJob", False)


def test_task_job_of_deleted_run_is_suspended_without_owner(build: type[Builders]) -> None:
    job = _build(build, not_before=NOT_BEFORE)
    config = read_task_config(job)
    assert config
    assert config.clean.not_before == NOT_BEFORE
    assert (job["metadata"]["ownerReferences"], job["spec"]["suspend"]) == ([], True)


def test_task_job_name_depends_on_owner_and_config_alone(build: type[Builders]) -> None:
    names = [
        _build(build)["metadata"]["name"],
        _build(build, not_before=NOT_BEFORE)["metadata"]["name"],
        _build(build, checkpoint_retention_seconds=60)["metadata"]["name"],
        _build(build, {**SPEC, "output": {"uri": "s3://bucket/other"}})["metadata"]["name"],
    ]
    assert len(set(names)) == len(names)
    assert _build(build, not_before="2027-01-01T00:00:00Z")["metadata"]["name"] == names[1]
    assert _build(build)["metadata"]["name"] == names[0]
    assert names[0].startswith("bot-clean-")


def test_task_job_long_name_is_a_valid_name(build: type[Builders]) -> None:
    finetunejob = FineTuneJob.model_validate(build.finetunejob("a" * 45 + "-" + "b" * 10))
    name = build_clean_job(finetunejob, Settings())["metadata"]["name"]
    assert len(name) <= 63
    assert "--" not in name


@pytest.mark.parametrize("uri", ["s3://bucket/$(HOME)/x", "s3://bucket/$$/x", "s3://bucket/$/{namespace}/{name}/"])
def test_task_job_config_is_passed_unchanged(build: type[Builders], uri: str) -> None:
    job = _build(build, {**SPEC, "output": {"uri": uri}})
    config = read_task_config(job)
    assert config
    expected = uri.replace("{namespace}", "team").replace("{name}", "bot").rstrip("/")
    assert config.clean.output_uri == expected
    assert config.storage.endpoint == "https://s3.example"
    (value,) = [
        variable["value"]
        for variable in job["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == TASK_CONFIG_ENV
    ]
    assert value.count("$") == 2 * expected.count("$")


def test_task_job_min_age_is_below_retention(build: type[Builders]) -> None:
    config = read_task_config(_build(build, checkpoint_retention_seconds=1000))
    assert config
    assert config.clean.min_age_seconds == 900


def test_task_job_without_task_image_uses_trainer_image_of_operator(build: type[Builders]) -> None:
    job = _build(build, trainer_image="registry.example/trainer:1", trainer_image_pull_policy="Always")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/trainer:1", "Always")


def test_task_job_defaults_of_installation_apply(build: type[Builders]) -> None:
    defaults = Defaults.model_validate(
        {"storage": {"endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "minio"}}}
    )
    job = _build(build, {}, defaults=defaults)
    config = read_task_config(job)
    assert config
    assert config.storage.endpoint == "http://minio:9000"
    assert [volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]] == ["s3-credentials"]


def test_task_job_of_a_hundred_trials_has_no_variable_that_is_too_long_to_start_a_program(
    build: type[Builders],
) -> None:
    trial = {"configuration": 1, "parameters": {"learningRate": 1e-4}, "seed": 42, "phase": "Complete", "value": 1.5}
    step = {"step": 100, "evalLoss": 1.0 / 3, "evalLossLow": 0.2 / 3, "evalLossHigh": 2.0 / 3}
    result = {"adapterURI": "s3://bucket/$(HOME)/" + "ä" * 480, "digest": "sha256:" + "0" * 64, "steps": [step] * 8}
    trials = [{"name": f"lr-{number}", **trial, **result} for number in range(1, 101)]
    report = {"outputURI": "s3://bucket/lr/", "sweep": "team/lr", "objective": "evalLoss", "trials": trials}
    config = TaskConfig.model_validate({"sweepReport": report})
    job = build_task_job(
        Task(TaskKind.REPORT, config, "lr", None, "x"), FineTuneJob.model_validate(build.finetunejob()), Settings()
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert max(len(f"{each['name']}={each['value']}".encode()) for each in container["env"]) < 131_072
    assert read_task_config(job) == config


@pytest.mark.parametrize("text", [None, "", "{}", "no JSON"])
def test_read_task_config_foreign_job_is_none(text: str | None) -> None:
    environment = [] if text is None else [{"name": TASK_CONFIG_ENV, "value": text}]
    job = {"spec": {"template": {"spec": {"containers": [{"env": environment}]}}}}
    assert read_task_config(job) is None
    assert read_task_config({"spec": {}}) is None


LONG_URI = "s3://bucket/" + "\u00fc" * 1000
COLUMNS = ["messages", "input", "output", "system", "prompt", "completion", "chosen", "rejected"]
METRIC = {"metric": "evalLoss", "value": 1 / 3, "baseline": 2 / 3, "change": -1 / 3, "higherIsBetter": False}
CHANGE = {**METRIC, "low": -1 / 3, "high": 1 / 7, "samples": 12345}
TRIAL = {"name": "a" * 63, "configuration": 1, "parameters": {"learningRate": 1 / 3}, "seed": 1, "phase": "Complete"}
STEPS = [{"step": step, "evalLoss": 1 / 3, "evalLossLow": 1 / 7, "evalLossHigh": 1 / 9} for step in range(8)]
RUN = {"run": "a" * 63, "trigger": "Schedule", "scheduledTime": NOT_BEFORE, "phase": "Complete", "message": "$" * 256}
SWEEP_REPORT = {"outputURI": "s3://bucket/x/", "sweep": "team/bot", "objective": "evalLoss"}
SCHEDULE_REPORT = {"reportURI": "s3://bucket/x.html", "schedule": "team/bot"}
LARGEST_CONFIGS = [
    TaskConfig(
        sweep_report=SweepReportTask.model_validate(
            {**SWEEP_REPORT, "trials": [{**TRIAL, "steps": STEPS, "adapterURI": LONG_URI}] * 100}
        )
    ),
    TaskConfig(
        schedule_report=ScheduleReportTask.model_validate(
            {**SCHEDULE_REPORT, "rows": [{**RUN, "changes": [CHANGE] * 8, "adapterURI": LONG_URI}] * 50}
        )
    ),
    TaskConfig(
        check_inputs=CheckInputsTask(
            model_uri=LONG_URI,
            output_uri=LONG_URI,
            sources=[DataSource.model_validate({"uri": LONG_URI, "fields": dict.fromkeys(COLUMNS, "\u00fc" * 128)})]
            * 24,
        )
    ),
]


def _build_task(build: type[Builders], kind: TaskKind, config: TaskConfig) -> Body:
    finetunejob = FineTuneJob.model_validate(build.finetunejob(spec=SPEC))
    return build_task_job(Task(kind, config, "bot", None, "1"), finetunejob, Settings())


@pytest.mark.parametrize("config", LARGEST_CONFIGS)
def test_task_job_largest_config_starts_a_program_that_reads_it(build: type[Builders], config: TaskConfig) -> None:
    job = _build_task(build, TaskKind.REPORT, config)
    assert read_task_config(job) == config
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"].replace("$$", "$") for each in container["env"]}
    code = "import os, sys; sys.stdout.buffer.write(b''.join(os.environb[n.encode()] for n in sys.argv[1:]))"
    names = [name for name in environment if name.startswith(TASK_CONFIG_ENV)]
    process = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, check=True)
    assert process.stdout.decode() == join_parts(environment, TASK_CONFIG_ENV)
    assert TaskConfig.model_validate_json(process.stdout) == config


def test_task_job_of_frequent_tasks_is_deleted_soon(build: type[Builders]) -> None:
    seconds = [
        _build_task(build, kind, LARGEST_CONFIGS[-1])["spec"]["ttlSecondsAfterFinished"]
        for kind in (TaskKind.CHECK_INPUTS, TaskKind.REPORT, TaskKind.PROMOTE)
    ]
    assert seconds == [3600, 7200, 86400]
