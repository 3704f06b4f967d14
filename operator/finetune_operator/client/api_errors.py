"""Turns errors of the API server and of the connection to it into sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from finetune_operator.client.errors import (
    ClientError,
    ClusterUnavailable,
    Forbidden,
    InvalidManifest,
    ObjectExists,
    ObjectNotFound,
    OperatorNotInstalled,
)

_READ_VERBS = ("get", "list", "watch")


@contextmanager
def translate_api_errors(verb: str, plural: str, namespace: str, name: str = "") -> Iterator[None]:
    """Raise the matching `ClientError` for an error of a request."""
    try:
        yield
    except ApiException as error:
        raise _describe(error, verb, plural, namespace, name) from None
    except (HTTPError, OSError) as error:
        reason = str(getattr(error, "reason", error))
        raise ClusterUnavailable(f"the API server does not respond: {reason}; check context and network") from None


def _describe(error: ApiException, verb: str, plural: str, namespace: str, name: str) -> ClientError:
    status, message = _read_status(error)
    subject = f"{plural} {name}".strip() + f" in namespace {namespace}"
    if error.status == HTTPStatus.NOT_FOUND and not status.get("details", {}).get("name"):
        return OperatorNotInstalled(f"the cluster does not know {plural}: install finetune-operator and its CRDs")
    if error.status == HTTPStatus.NOT_FOUND:
        return ObjectNotFound(f"there is no {subject}")
    if error.status == HTTPStatus.UNAUTHORIZED:
        return ClusterUnavailable("the API server rejects the credentials of the kubeconfig; log in again")
    if error.status == HTTPStatus.FORBIDDEN:
        role = "view" if verb in _READ_VERBS else "edit"
        return Forbidden(
            f"you may not {verb} {subject}; the ClusterRole finetune-operator-{role} has this right, "
            f"bind it to you in the namespace"
        )
    if error.status == HTTPStatus.CONFLICT:
        return ObjectExists(f"{subject} exists; choose another name or delete it")
    if error.status in (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST):
        causes = [
            f"{cause.get('field', '')}: {cause.get('message', '')}".strip(": ")
            for cause in status.get("details", {}).get("causes", [])
        ]
        return InvalidManifest(message, causes or [message])
    return ClientError(f"the API server answers {error.status} to {verb} {subject}: {message}")


def _read_status(error: ApiException) -> tuple[dict[str, dict[str, list[dict[str, str]]]], str]:
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        status = {}
    return status, str(status.get("message") or error.reason)
