"""Models from the hub, against a small server that speaks the hub's API."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer import hub_server
from tests.support.trainer.hub_server import COMMIT, LICENSE, NEEDED, TOKEN, HubHandler, hub_endpoint

from finetune_trainer.contract import HUB_TOKEN_FILE_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import hub
from finetune_trainer.inputs.base_model import HubModelSource, fetch_model

__all__ = ["hub_endpoint"]


def test_hub_downloads_needed_files_of_resolved_commit(hub_endpoint: str, tmp_path: Path) -> None:
    model = hub.resolve_snapshot("hf://org/model", "main")
    assert model.commit == COMMIT
    assert model.sizes == {name: len(content) for name, content in NEEDED.items()}
    target = tmp_path / "model"
    hub.download_snapshot(model, target)
    downloaded = {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    }
    assert downloaded == NEEDED
    files = [path for path in HubHandler.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{COMMIT}/" in path for path in files)


def test_hub_model_has_license_of_its_card(hub_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubModelSource(hub.resolve_snapshot("hf://org/model", "main"))
    assert fetch_model(source, tmp_path / "model", lambda _: None).license_fields == LICENSE
    monkeypatch.setattr(hub_server, "CARD", {"license": ["mit", "apache-2.0"], "license_name": None})
    assert hub.resolve_snapshot("hf://org/model", "main").license_fields == {}
    monkeypatch.setattr(hub_server, "CARD", None)
    assert hub.resolve_snapshot("hf://org/model", "main").license_fields == {}


def test_hub_config_is_read_without_the_weights(hub_endpoint: str) -> None:
    source = HubModelSource(hub.resolve_snapshot("hf://org/model", "main"))
    assert source.read_config() == NEEDED["config.json"]
    assert {path.rpartition("/")[2] for path in HubHandler.requests if "/resolve/" in path} == {"config.json"}


@pytest.mark.parametrize(
    ("repo", "revision", "token", "reason", "message"),
    [
        ("org/model", "no-such-revision", None, Reason.MODEL_NOT_FOUND, "no such branch, tag or commit"),
        ("org/none", None, None, Reason.MODEL_NOT_FOUND, "the model does not exist or is private"),
        ("org/none", None, TOKEN, Reason.MODEL_NOT_FOUND, "the model does not exist or is private"),
        ("org/gated", None, None, Reason.AUTH_FAILED, "/org/gated and set model.tokenSecretRef"),
        ("org/gated", None, TOKEN, Reason.ACCESS_DENIED, "accept the license at"),
        ("org/forbidden", None, TOKEN, Reason.ACCESS_DENIED, "has no permission to read this model"),
        ("org/model", None, "wrong_canary", Reason.AUTH_FAILED, "the token is invalid or has expired"),
        ("org/model", None, "", Reason.AUTH_FAILED, "the Secret of model.tokenSecretRef has no key HF_TOKEN"),
        ("org/broken", None, None, Reason.STORAGE_UNREACHABLE, "the hub responded with status 500"),
    ],
)
@pytest.mark.usefixtures("hub_endpoint")
def test_hub_error_has_reason_and_message(
    repo: str,
    revision: str | None,
    token: str | None,
    reason: Reason,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token is not None:
        (tmp_path / "token").write_text(token + "\n")
        monkeypatch.setenv(HUB_TOKEN_FILE_ENV, str(tmp_path / "token"))
    with pytest.raises(TrainerError) as error:
        hub.resolve_snapshot(f"hf://{repo}", revision)
    assert error.value.reason is reason, error.value.message
    assert message in error.value.message
    assert "canary" not in error.value.message


def test_hub_unreachable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TrainerError, match=r"no response; check DNS, network policy and HF_ENDPOINT") as error:
        hub.resolve_snapshot("hf://org/model", None)
    assert error.value.reason is Reason.STORAGE_UNREACHABLE


def test_hub_lost_during_download_is_reported(
    hub_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hub.resolve_snapshot("hf://org/model", "main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TrainerError) as error:
        hub.download_snapshot(model, tmp_path / "model")
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
