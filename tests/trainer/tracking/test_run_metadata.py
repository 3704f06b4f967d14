"""Tests of the metadata that trackers receive: identity and settings of the run, but no texts of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.contract import JOB_ENV, RUN_ID_ENV, TRACKING_CREDENTIALS_DIR_ENV, Reason, Tracking, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.tracking import run_tracking
from finetune_trainer.tracking.run_metadata import build_run_metadata

CONFIG = TrainerConfig.model_validate(
    {
        "model": {"uri": "s3://models/tiny", "chatTemplate": "canary {{ messages }}"},
        "dataset": {"sources": [{"uri": "s3://data/a", "fields": {"prompt": "q"}}, {"uri": "s3://data/b"}]},
        "training": {"maxSteps": 7, "lora": {"targetModules": ["q_proj", "v_proj"]}},
        "evaluation": {"samplePrompts": ["canary?"], "bias": {"terms": [["canary", "finch"]]}},
        "output": {"uri": "s3://results/team/bot/"},
        "tracking": {"tool": "mlflow", "uri": "http://mlflow.example"},
    }
)


def test_run_metadata_names_job_in_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID_ENV, "uid-1")
    monkeypatch.setenv(JOB_ENV, "team/bot")
    described = build_run_metadata(CONFIG, "sha256:1")
    assert (described.run_id, described.name) == ("uid-1", "team/bot")
    assert described.tags == {
        "finetune.runId": "uid-1",
        "finetune.namespace": "team",
        "finetune.name": "bot",
        "finetune.resultURI": "s3://results/team/bot",
        "finetune.configDigest": "sha256:1",
    }


def test_run_metadata_without_job_uses_result_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RUN_ID_ENV, JOB_ENV):
        monkeypatch.delenv(name, raising=False)
    described = build_run_metadata(CONFIG, "sha256:1")
    assert described.name == "bot"
    assert "finetune.name" not in described.tags
    assert described.run_id.startswith("by-hand-")


def test_run_metadata_params_omit_texts() -> None:
    params = build_run_metadata(CONFIG, "sha256:1").params
    assert params["training.maxSteps"] == "7"
    assert params["training.lora.targetModules"] == "q_proj, v_proj"
    assert params["dataset.sources.0.fields.prompt"] == "q"
    assert params["dataset.sources.1.uri"] == "s3://data/b"
    assert "canary" not in str(params)
    assert not [name for name in params if name.startswith("tracking")]


TOKEN, NAME, PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
MLFLOW = {"tool": "mlflow", "uri": "http://mlflow.example"}
SECRETS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str] | None]] = {
    "a token": (MLFLOW, {TOKEN: "t\n"}, {TOKEN: "t"}),
    "a name and a password": (MLFLOW, {NAME: "u", PASSWORD: "p"}, {NAME: "u", PASSWORD: "p"}),
    "a name without a password": (MLFLOW, {NAME: "u"}, None),
    "something else": (MLFLOW, {"WANDB_API_KEY": "k"}, None),
    "an empty token": (MLFLOW, {TOKEN: ""}, None),
    "W&B's key": ({"tool": "wandb"}, {"WANDB_API_KEY": "k"}, {"WANDB_API_KEY": "k"}),
    "no key for W&B": ({"tool": "wandb"}, {TOKEN: "t"}, None),
}


@pytest.mark.parametrize(("spec", "files", "expected"), SECRETS.values(), ids=SECRETS)
def test_tracking_credentials_are_read_from_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, str],
    files: dict[str, str],
    expected: dict[str, str] | None,
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv(TRACKING_CREDENTIALS_DIR_ENV, str(tmp_path))
    tracking = Tracking.model_validate(spec)
    if expected is not None:
        assert run_tracking.read_credentials(tracking) == expected
        return
    with pytest.raises(
        TrainerError, match=r"Secret of tracking\.credentialsSecretRef does not exist or has no "
    ) as error:
        run_tracking.read_credentials(tracking)
    assert error.value.reason is Reason.AUTH_FAILED


def test_tracking_credentials_without_secret_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACKING_CREDENTIALS_DIR_ENV, raising=False)
    assert run_tracking.read_credentials(Tracking.model_validate(MLFLOW)) == {}
