"""Tests of base models on volumes: the digest of their content, missing folders, and links to other folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.untrained_runs import build_config, prefix, publish, run_untrained

from finetune_trainer.contract import CLAIMS_DIR_ENV, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3


def test_base_model_on_volume_is_identified_by_content(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "claims" / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    (model / "model.safetensors").write_bytes(b"base")
    (model / "README.md").write_bytes(b"clutter")
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    config = build_config(s3, prefix, model={"uri": "pvc://models/tiny"})
    outcome = publish(config, tmp_path)
    resolved = resolve.resolve_inputs(build_config(s3, prefix), S3(config.storage))
    in_bucket = resolve.fetch_weights(resolved, resolve.start_download(resolved, tmp_path / "export").result())
    assert outcome.result
    assert outcome.result.model_revision == in_bucket.model_revision  # the same files elsewhere are the same model
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    (model / "model.safetensors").write_bytes(b"else")
    with pytest.raises(TrainerError) as error:
        run_untrained(config, tmp_path)
    assert error.value.reason is Reason.INPUTS_CHANGED


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://models/missing", Reason.MODEL_NOT_FOUND),
        ("pvc://missing/tiny", Reason.MODEL_NOT_FOUND),
        ("pvc://models/link", Reason.MODEL_INVALID),
        ("s3://models/missing", Reason.MODEL_NOT_FOUND),
    ],
)
def test_base_model_missing_has_reason(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: Reason
) -> None:
    (tmp_path / "claims" / "models").mkdir(parents=True)
    (tmp_path / "claims" / "models" / "link").symlink_to("/etc")
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    with pytest.raises(TrainerError) as error:
        run_untrained(build_config(s3, prefix, model={"uri": uri}), tmp_path)
    assert error.value.reason is reason, error.value.message


def test_base_model_in_local_folder_is_read_in_place(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    blob, model = tmp_path / "blob", tmp_path / "snapshot"
    model.mkdir()
    blob.write_bytes(b"base")
    (model / "config.json").write_bytes(b"{}")
    (model / "model.safetensors").symlink_to(blob)  # as in the cache of the hub's client
    resolved = resolve.resolve_inputs(
        build_config(s3, prefix, model={"uri": f"file://{model}"}), S3(Storage(endpoint=s3.endpoint))
    )
    downloaded = resolve.fetch_weights(resolved, resolve.start_download(resolved, tmp_path).result())
    assert downloaded.model_dir == model
    assert downloaded.model_revision.startswith("sha256:")


LINKS = {
    "a file that leaves it": ("chat_template.jinja", "../../../secret", Reason.MODEL_INVALID),
    "an absolute one": ("chat_template.jinja", "/etc/hostname", Reason.MODEL_INVALID),
    "a folder that leaves it": ("additional_chat_templates", "../../..", Reason.MODEL_INVALID),
    "to nothing": ("chat_template.jinja", "../../../none", Reason.MODEL_INVALID),
    "an unused folder": ("original", "/mnt/elsewhere", None),
    "within the volume": ("chat_template.jinja", "../blobs/template", None),
}


@pytest.mark.parametrize(("name", "target", "reason"), LINKS.values(), ids=LINKS)
def test_base_model_link_leaving_volume_is_refused(
    s3: S3Server,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    target: str,
    reason: Reason | None,
) -> None:
    model, blobs = tmp_path / "claims" / "models" / "tiny", tmp_path / "claims" / "models" / "blobs"
    model.mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "secret").write_text("of the node")
    (blobs / "template").write_text("{{ messages }}")
    (model / "model.safetensors").write_bytes(b"base")
    (model / "config.json").write_bytes(b"{}")
    (model / name).symlink_to(target)
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    config = build_config(s3, prefix, model={"uri": "pvc://models/tiny"})
    if reason is None:
        assert publish(config, tmp_path).reason is Reason.COMPLETED
        return
    with pytest.raises(TrainerError, match=f"pvc://models/tiny: '{name}' is a link to a target outside") as error:
        run_untrained(config, tmp_path)
    assert error.value.reason is reason
