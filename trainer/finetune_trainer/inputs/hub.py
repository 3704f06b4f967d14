"""Base models on the Hugging Face hub: resolves a commit, then downloads exactly the files of that commit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData, snapshot_download

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.hub_client import (
    MODEL,
    TIMEOUT_SECONDS,
    get_endpoint,
    no_response_error,
    read_token,
    translate_errors,
)

# Config, weights, tokenizer (JSON, SentencePiece, the two text files of BPE) and chat templates; no code.
_INCLUDED_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
# A second copy of the weights in Mistral's format.
_EXCLUDED_PATTERN = "consolidated*"
_TEMPLATE_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class HubSnapshot:
    """A model repository at one commit."""

    repo: str
    commit: str
    sizes: dict[str, int]
    """Sizes of the files of the model, in bytes, by name."""
    license_fields: dict[str, str] = field(default_factory=dict)
    """License of the model's card: `license`, and `license_name` and `license_link` of another one than the hub's."""
    endpoint: str = ""
    """Address of the hub."""
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 digests of the files that are stored outside of Git, by name."""
    blob_ids: dict[str, str] = field(default_factory=dict)
    """IDs in Git of the other files, by name."""


def resolve_snapshot(uri: str, revision: str | None) -> HubSnapshot:
    """Resolve a branch, tag or commit to a commit and its files."""
    repo = uri.removeprefix("hf://")
    requested_revision = revision or "main"
    with translate_errors(MODEL, repo, requested_revision):
        info = HfApi(endpoint=get_endpoint(), token=read_token(MODEL)).model_info(
            repo, revision=requested_revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    files = [file for file in info.siblings or [] if _is_model_file(file.rfilename)]
    sizes = {file.rfilename: file.size or 0 for file in files}
    if info.sha is None or not sizes:
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri} at {requested_revision} has no model files")
    return HubSnapshot(
        repo,
        info.sha,
        sizes,
        _read_license(info.card_data),
        get_endpoint(),
        sha256={file.rfilename: file.lfs.sha256 for file in files if file.lfs},
        blob_ids={file.rfilename: file.blob_id for file in files if file.blob_id and not file.lfs},
    )


def download_snapshot(snapshot: HubSnapshot, target: Path) -> None:
    """Download the files of the model to `target`."""
    with translate_errors(MODEL, snapshot.repo, snapshot.commit):
        snapshot_download(
            snapshot.repo,
            revision=snapshot.commit,
            local_dir=target,
            allow_patterns=list(snapshot.sizes),
            token=read_token(MODEL),
            endpoint=get_endpoint(),
            etag_timeout=TIMEOUT_SECONDS,
        )
    shutil.rmtree(target / ".cache", ignore_errors=True)  # records of the hub's client, not part of the model
    # If the hub does not respond, the client returns a folder that has other files already.
    missing = next((name for name in snapshot.sizes if not (target / name).is_file()), None)
    if missing:
        raise no_response_error(f"hf://{snapshot.repo} at {snapshot.commit} on {get_endpoint()}", f"no {missing}")


def _read_license(card: ModelCardData | None) -> dict[str, str]:
    """Return the fields of a card about its license. People write cards, so other values than text are left out."""
    if card is None:
        return {}
    fields = {"license": card.license, "license_name": card.license_name, "license_link": card.license_link}
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _is_model_file(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder not in ("", _TEMPLATE_FOLDER) or fnmatch(file, _EXCLUDED_PATTERN):
        return False
    return any(fnmatch(file, pattern) for pattern in _INCLUDED_PATTERNS)
