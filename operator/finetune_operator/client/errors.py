"""Errors of the client. Each message is one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class ClientError(Exception):
    """Base class of all errors that the client raises on purpose. The message is complete and safe to print."""


class ClusterUnavailable(ClientError):
    """There is no usable kubeconfig, the context does not exist, or the API server does not respond."""


class LoginRequired(ClusterUnavailable):
    """The API server rejects the credentials of the kubeconfig, or the kubeconfig provides none. No retry helps."""


class OperatorNotInstalled(ClientError):
    """The cluster does not know the kind: the CRDs of finetune-operator are missing."""


class Forbidden(ClientError):
    """A right is missing. The message names verb, resource and namespace, and the role that has the right."""


class ObjectNotFound(ClientError):
    """There is no object with this name in the namespace."""


class ObjectExists(ClientError):
    """An object with this name exists."""


class InvalidState(ClientError):
    """The object is not in a state in which the request has an effect, such as a run that has ended."""


class InvalidManifest(ClientError):
    """The manifest is invalid. `problems` has one sentence for each mistake."""

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


class ResultUnavailable(ClientError):
    """A file of a result cannot be read from S3: it does not exist, is incomplete or damaged, or access is denied."""


class WaitTimeout(ClientError):
    """The run has not reached the condition in time."""
