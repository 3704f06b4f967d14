"""Turns errors of the API server and of the connection to it into sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from urllib3.exceptions import HTTPError, MaxRetryError

from finetune_operator.api import KIND, PLURAL
from finetune_operator.api.schedule import SCHEDULE_KIND, SCHEDULE_PLURAL
from finetune_operator.api.sweep import SWEEP_KIND, SWEEP_PLURAL
from finetune_operator.client.errors import (
    ClientError,
    ClusterUnavailable,
    Forbidden,
    InvalidManifest,
    LoginRequired,
    ObjectExists,
    ObjectNotFound,
    OperatorNotInstalled,
)
from finetune_trainer.text import to_one_line

_READ_VERBS = ("get", "list", "watch")
_KINDS = {PLURAL: KIND, SCHEDULE_PLURAL: SCHEDULE_KIND, SWEEP_PLURAL: SWEEP_KIND, "pods": "pod"}
_OWN_RESOURCES = (PLURAL, SCHEDULE_PLURAL, SWEEP_PLURAL)


class RequestFailed(Exception):
    """The API server has answered a request with an error."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body}")
        self.code = code
        self.body = body


class Target(NamedTuple):
    """What a request does, and to what."""

    verb: str
    resource: str
    namespace: str
    """Namespace, or empty for all of them."""
    name: str = ""

    @property
    def subject(self) -> str:
        """The objects as the part of a sentence: `FineTuneJob bot in namespace support`, `finetunejobs in …`."""
        place = f"in namespace {self.namespace}" if self.namespace else "in all namespaces"
        objects = f"{_KINDS.get(self.resource, self.resource)} {self.name}" if self.name else self.resource
        return f"{objects} {place}"


class _LenientModel(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class _Cause(_LenientModel):
    field: str = ""
    message: str = ""

    def describe(self) -> str:
        return to_one_line(f"{self.field}: {self.message}".strip(": "))


class _Details(_LenientModel):
    name: str = ""
    kind: str = ""
    causes: list[_Cause] | None = None


class _Status(_LenientModel):
    """The object with which an API server describes an error."""

    kind: str = ""
    reason: str = ""
    message: str = ""
    details: _Details | None = None


@contextmanager
def translate_api_errors(target: Target, host: str) -> Iterator[None]:
    """Raise the matching `ClientError` for an error of a request."""
    try:
        yield
    except RequestFailed as error:
        raise _describe(error, target) from None
    except MaxRetryError as error:
        raise _build_no_response_error(host, error.reason or error) from None
    except (HTTPError, OSError) as error:
        raise _build_no_response_error(host, error) from None
    except ValueError as error:
        message = f"the answer of {host} is not that of an API server ({to_one_line(str(error), 200)}); check context"
        raise ClusterUnavailable(message) from None


def _build_no_response_error(host: str, error: Exception) -> ClusterUnavailable:
    # urllib3 begins some messages with the representation of a connection.
    reason = to_one_line(str(error).rpartition("): ")[2], 300)
    return ClusterUnavailable(f"the API server {host} does not respond: {reason}; check context, network and proxy")


def _describe(error: RequestFailed, target: Target) -> ClientError:
    status = _read_status(error)
    if not status.message and error.code not in _CODES_WITHOUT_STATUS and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        answer = to_one_line(error.body, 200)
        problem = f"what answers is not an API server: {error.code} to {target.verb} {target.subject}: {answer}"
        return ClusterUnavailable(f"{problem}; check server and scheme of the context's cluster")
    message = to_one_line(status.message or error.body or HTTPStatus(error.code).phrase)
    builder = _BUILDERS.get(error.code)
    if builder:
        return builder(target, status, message)
    text = f"the API server answers {error.code} to {target.verb} {target.subject}: {message}"
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS:
        return ClusterUnavailable(f"{text}; try again")
    return ClientError(text)


def _describe_missing(target: Target, status: _Status, message: str) -> ClientError:
    details = status.details or _Details()
    if details.kind == "namespaces":
        return ObjectNotFound(f"there is no namespace {to_one_line(details.name)}")
    if details.name or target.resource.partition("/")[0] not in _OWN_RESOURCES:
        return ObjectNotFound(f"there is no {target.subject}")
    return OperatorNotInstalled(
        f"the cluster does not know {target.resource}: install finetune-operator and its CRDs, or check the context"
    )


def _describe_unauthorized(target: Target, status: _Status, message: str) -> ClientError:
    return LoginRequired("the API server rejects the credentials of the kubeconfig; log in again")


def _describe_forbidden(target: Target, status: _Status, message: str) -> ClientError:
    if '" cannot ' not in message:  # a quota or an admission policy, which name themselves
        return Forbidden(f"the API server refuses to {target.verb} {target.subject}: {message}")
    return build_missing_right_error(target)


def build_missing_right_error(target: Target) -> Forbidden:
    """Return the error of a missing right. It names the role that has the right: Kubernetes' own, or the chart's."""
    level = "view" if target.verb in _READ_VERBS else "edit"
    own_role = f"finetune-operator-{level} (or RELEASE-{level}) of the chart"
    role = own_role if target.resource in _OWN_RESOURCES else level
    return Forbidden(
        f"you may not {target.verb} {target.subject}; the ClusterRole {role} has this right, ask an administrator to "
        "bind it to you"
    )


def _describe_conflict(target: Target, status: _Status, message: str) -> ClientError:
    if status.reason == "AlreadyExists":
        existing = target._replace(name=to_one_line((status.details or _Details()).name))
        return ObjectExists(f"{existing.subject} exists; choose another name or delete it")
    return ClientError(f"{target.subject} cannot be changed: {message}; try again")


def _describe_invalid(target: Target, status: _Status, message: str) -> ClientError:
    causes = (status.details or _Details()).causes or []
    return InvalidManifest(message, [cause.describe() for cause in causes] or [message])


_CODES_WITHOUT_STATUS = (HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
"""An API server, or what is before it, answers these without a `Status` as well: an unknown group is a plain 404."""
_BUILDERS: dict[int, Callable[[Target, _Status, str], ClientError]] = {
    HTTPStatus.NOT_FOUND: _describe_missing,
    HTTPStatus.UNAUTHORIZED: _describe_unauthorized,
    HTTPStatus.FORBIDDEN: _describe_forbidden,
    HTTPStatus.CONFLICT: _describe_conflict,
    HTTPStatus.UNPROCESSABLE_ENTITY: _describe_invalid,
    HTTPStatus.BAD_REQUEST: _describe_invalid,
}


def _read_status(error: RequestFailed) -> _Status:
    try:
        return _Status.model_validate_json(error.body)
    except ValidationError:
        return _Status()
