"""What models and datasets of the Hugging Face hub have in common: endpoint, token, and errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.contract import DATASET_HUB_TOKEN_FILE_ENV, HUB_TOKEN_FILE_ENV, HUB_TOKEN_KEY, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import DATA_ERRORS, MODEL_ERRORS, ErrorMapping

TIMEOUT_SECONDS = 15


@dataclass(frozen=True)
class RepositoryKind:
    """A kind of repository on the hub: how its errors are named, and where its token is."""

    name: str
    """The kind in messages, and in the API of the hub."""
    path_prefix: str
    """What precedes the name of the repository in URIs and web addresses."""
    error_mapping: ErrorMapping
    token_fields: dict[str, str]
    """Fields of the config that set a token, by the environment variable with its file. The first one that is set is
    used."""


MODEL = RepositoryKind("model", "", MODEL_ERRORS, {HUB_TOKEN_FILE_ENV: "model.tokenSecretRef"})
DATASET = RepositoryKind(
    "dataset",
    "datasets/",
    DATA_ERRORS,
    {DATASET_HUB_TOKEN_FILE_ENV: "dataset.tokenSecretRef", HUB_TOKEN_FILE_ENV: "model.tokenSecretRef"},
)


def get_endpoint() -> str:
    """Return the endpoint of the hub. The library reads HF_ENDPOINT only when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def read_token(kind: RepositoryKind) -> str | None:
    """Return the token of the mounted Secret; None to use the login of the user, if any."""
    variable = next((name for name in kind.token_fields if os.environ.get(name)), None)
    if variable is None:
        return None
    path = os.environ[variable]
    try:
        token = Path(path).read_text().strip()
    except OSError:
        token = ""
    if not token:
        message = f"the Secret of {kind.token_fields[variable]} has no key {HUB_TOKEN_KEY} (mounted at {path})"
        raise TrainerError(Reason.AUTH_FAILED, message)
    return token


@contextmanager
def translate_errors(kind: RepositoryKind, repo: str, revision: str) -> Iterator[None]:
    """Translate errors of the library in the block into `TrainerError`s."""
    location = f"hf://{kind.path_prefix}{repo} at {revision} on {get_endpoint()}"
    missing, token_field = kind.error_mapping.missing_reason, _get_token_field(kind)
    try:
        yield
    except GatedRepoError as error:
        raise _gated_error(location, kind, repo, error) from error
    except RepositoryNotFoundError as error:
        # The hub responds in the same way for a private repository.
        advice = f"the {kind.name} does not exist or is private: check the name, or set {token_field}"
        raise TrainerError(missing, f"{location}: {advice}") from error
    except RevisionNotFoundError as error:
        advice = "; write '/' in a revision as %2F" if kind is DATASET else ""
        raise TrainerError(missing, f"{location}: the {kind.name} has no such branch, tag or commit{advice}") from error
    except HfHubHTTPError as error:
        raise _http_error(location, kind, error) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise no_response_error(location, str(error).splitlines()[0]) from error


def no_response_error(location: str, detail: str) -> TrainerError:
    """Build the error for a hub that does not respond."""
    advice = "no response; check DNS, network policy and HF_ENDPOINT"
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{location}: {advice} ({detail})")


def _get_token_field(kind: RepositoryKind) -> str:
    return next(iter(kind.token_fields.values()))


def _gated_error(location: str, kind: RepositoryKind, repo: str, error: GatedRepoError) -> TrainerError:
    terms = f"the {kind.name} is gated: accept the license at {get_endpoint()}/{kind.path_prefix}{repo}"
    if error.response.status_code == httpx.codes.UNAUTHORIZED:
        return TrainerError(Reason.AUTH_FAILED, f"{location}: {terms} and set {_get_token_field(kind)}")
    return TrainerError(Reason.ACCESS_DENIED, f"{location}: {terms} with the account of this token")


def _http_error(location: str, kind: RepositoryKind, error: HfHubHTTPError) -> TrainerError:
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        advice = f"the token is invalid or has expired; check {_get_token_field(kind)}"
        return TrainerError(Reason.AUTH_FAILED, f"{location}: {advice}")
    if status == httpx.codes.FORBIDDEN:
        advice = f"the token has no permission to read this {kind.name}"
        return TrainerError(Reason.ACCESS_DENIED, f"{location}: {advice}")
    if status == httpx.codes.NOT_FOUND:
        message = f"{location}: a file of the {kind.name} is missing"
        return TrainerError(kind.error_mapping.missing_reason, message)
    return TrainerError(Reason.STORAGE_UNREACHABLE, f"{location}: the hub responded with status {status}")
