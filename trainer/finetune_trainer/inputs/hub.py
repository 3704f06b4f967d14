"""Base models on the Hugging Face hub: resolves a commit, then downloads exactly the files of that commit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.contract import HUB_TOKEN_FILE_ENV, HUB_TOKEN_KEY, Reason
from finetune_trainer.errors import TrainerError

# Config, weights, tokenizer (JSON, SentencePiece, the two text files of BPE) and chat templates; no code.
_INCLUDED_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
# A second copy of the weights in Mistral's format.
_EXCLUDED_PATTERN = "consolidated*"
_TEMPLATE_FOLDER = "additional_chat_templates"
_TIMEOUT_SECONDS = 15


@dataclass(frozen=True)
class HubSnapshot:
    """A model repository at one commit."""

    repo: str
    commit: str
    sizes: dict[str, int]
    """Sizes of the files of the model, in bytes, by name."""


def resolve_snapshot(uri: str, revision: str | None) -> HubSnapshot:
    """Resolve a branch, tag or commit to a commit and its files."""
    repo = uri.removeprefix("hf://")
    requested_revision = revision or "main"
    with _translate_errors(repo, requested_revision):
        info = HfApi(endpoint=_get_endpoint(), token=_read_token()).model_info(
            repo, revision=requested_revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if _is_model_file(file.rfilename)}
    if info.sha is None or not sizes:
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri} at {requested_revision} has no model files")
    return HubSnapshot(repo, info.sha, sizes)


def download_snapshot(snapshot: HubSnapshot, target: Path) -> None:
    """Download the files of the model to `target`."""
    with _translate_errors(snapshot.repo, snapshot.commit):
        snapshot_download(
            snapshot.repo,
            revision=snapshot.commit,
            local_dir=target,
            allow_patterns=list(snapshot.sizes),
            token=_read_token(),
            endpoint=_get_endpoint(),
            etag_timeout=_TIMEOUT_SECONDS,
        )
    shutil.rmtree(target / ".cache", ignore_errors=True)  # records of the hub's client, not part of the model


def _is_model_file(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder not in ("", _TEMPLATE_FOLDER) or fnmatch(file, _EXCLUDED_PATTERN):
        return False
    return any(fnmatch(file, pattern) for pattern in _INCLUDED_PATTERNS)


def _get_endpoint() -> str:
    """Return the endpoint of the hub. The library reads HF_ENDPOINT only when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _read_token() -> str | None:
    """Return the token of the mounted Secret; None to use the login of the user, if any."""
    path = os.environ.get(HUB_TOKEN_FILE_ENV)
    if not path:
        return None
    try:
        token = Path(path).read_text().strip()
    except OSError:
        token = ""
    if not token:
        raise TrainerError(
            Reason.AUTH_FAILED, f"the Secret of model.tokenSecretRef has no key {HUB_TOKEN_KEY} (mounted at {path})"
        )
    return token


@contextmanager
def _translate_errors(repo: str, revision: str) -> Iterator[None]:
    """Translate errors of the library in the block into `TrainerError`s."""
    location = f"hf://{repo} at {revision} on {_get_endpoint()}"
    try:
        yield
    except GatedRepoError as error:
        raise _gated_error(location, repo, error) from error
    except RepositoryNotFoundError as error:
        # The hub responds in the same way for a private model.
        advice = "the model does not exist or is private: check the name, or set model.tokenSecretRef"
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{location}: {advice}") from error
    except RevisionNotFoundError as error:
        advice = "the model has no such branch, tag or commit"
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{location}: {advice}") from error
    except HfHubHTTPError as error:
        raise _http_error(location, error) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        advice = "no response; check DNS, network policy and HF_ENDPOINT"
        raise TrainerError(
            Reason.STORAGE_UNREACHABLE, f"{location}: {advice} ({str(error).splitlines()[0]})"
        ) from error


def _gated_error(location: str, repo: str, error: GatedRepoError) -> TrainerError:
    licence = f"the model is gated: accept the license at {_get_endpoint()}/{repo}"
    if error.response.status_code == httpx.codes.UNAUTHORIZED:
        return TrainerError(Reason.AUTH_FAILED, f"{location}: {licence} and set model.tokenSecretRef")
    return TrainerError(Reason.ACCESS_DENIED, f"{location}: {licence} with the account of this token")


def _http_error(location: str, error: HfHubHTTPError) -> TrainerError:
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return TrainerError(
            Reason.AUTH_FAILED, f"{location}: the token is invalid or has expired; check model.tokenSecretRef"
        )
    if status == httpx.codes.FORBIDDEN:
        return TrainerError(Reason.ACCESS_DENIED, f"{location}: the token has no permission to read this model")
    if status == httpx.codes.NOT_FOUND:
        return TrainerError(Reason.MODEL_NOT_FOUND, f"{location}: a file of the model is missing")
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{location}: the hub responded with status {status}")
