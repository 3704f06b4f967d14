"""Base models from the Hugging Face hub: the commit first, then exactly that commit's files."""

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

# Config, weights, tokenizer (json, sentencepiece, BPE's two text files) and chat templates; nothing that is code.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
# A second copy of the weights in Mistral's own layout.
_UNWANTED = "consolidated*"
_TEMPLATES = "additional_chat_templates"
_TIMEOUT_SECONDS = 15


@dataclass(frozen=True)
class HubModel:
    """A model repository at one commit."""

    repo: str
    commit: str
    sizes: dict[str, int]
    """The files that are needed, with their sizes."""


def resolve(uri: str, revision: str | None) -> HubModel:
    """The commit that a branch or tag names now, and its files."""
    repo = uri.removeprefix("hf://")
    wanted = revision or "main"
    with _explained(repo, wanted):
        info = HfApi(endpoint=_endpoint(), token=_token()).model_info(
            repo, revision=wanted, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or [] if _is_needed(each.rfilename)}
    if info.sha is None or not sizes:
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri} at {wanted} holds no model files")
    return HubModel(repo, info.sha, sizes)


def download(model: HubModel, target: Path) -> None:
    """Fetch the model's files into `target`."""
    with _explained(model.repo, model.commit):
        snapshot_download(
            model.repo,
            revision=model.commit,
            local_dir=target,
            allow_patterns=list(model.sizes),
            token=_token(),
            endpoint=_endpoint(),
            etag_timeout=_TIMEOUT_SECONDS,
        )
    shutil.rmtree(target / ".cache", ignore_errors=True)  # the hub's notes on the download, no part of the model


def _is_needed(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder not in ("", _TEMPLATES) or fnmatch(file, _UNWANTED):
        return False
    return any(fnmatch(file, pattern) for pattern in _WANTED)


def _endpoint() -> str:
    """The library reads HF_ENDPOINT only when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _token() -> str | None:
    """The mounted Secret's token; without one the user's own login, if there is any."""
    path = os.environ.get(HUB_TOKEN_FILE_ENV)
    if not path:
        return None
    try:
        token = Path(path).read_text().strip()
    except OSError:
        token = ""
    if not token:
        raise TrainerError(Reason.AUTH_FAILED, f"the hub token's Secret has no key {HUB_TOKEN_KEY} (looked at {path})")
    return token


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    where = f"hf://{repo} at {revision} on {_endpoint()}"
    try:
        yield
    except GatedRepoError as error:
        raise _gated(where, repo, error) from error
    except RepositoryNotFoundError as error:
        # The hub answers the same for a model that is private.
        advice = "there is no such model, or it is private: check the name, or set model.tokenSecretRef"
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{where}: {advice}") from error
    except RevisionNotFoundError as error:
        advice = "the model has no such branch, tag or commit"
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{where}: {advice}") from error
    except HfHubHTTPError as error:
        raise _refused(where, error) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        advice = "no answer; check DNS, network policy and HF_ENDPOINT"
        raise TrainerError(Reason.STORAGE_UNREACHABLE, f"{where}: {advice} ({str(error).splitlines()[0]})") from error


def _gated(where: str, repo: str, error: GatedRepoError) -> TrainerError:
    licence = f"the model is gated: accept the licence at {_endpoint()}/{repo}"
    if error.response.status_code == httpx.codes.UNAUTHORIZED:
        return TrainerError(Reason.AUTH_FAILED, f"{where}: {licence} and set model.tokenSecretRef")
    return TrainerError(Reason.ACCESS_DENIED, f"{where}: {licence} with the account whose token this is")


def _refused(where: str, error: HfHubHTTPError) -> TrainerError:
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return TrainerError(
            Reason.AUTH_FAILED, f"{where}: the token is wrong or has expired; check model.tokenSecretRef"
        )
    if status == httpx.codes.FORBIDDEN:
        return TrainerError(Reason.ACCESS_DENIED, f"{where}: the token may not read this model")
    if status == httpx.codes.NOT_FOUND:
        return TrainerError(Reason.MODEL_NOT_FOUND, f"{where}: a file of the model is missing")
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{where}: the hub answered {status}")
