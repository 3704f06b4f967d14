"""Which of the watched namespaces can be read: each by itself, so that the loss of one stops no other. Pure."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

log = logging.getLogger(__name__)

Scope = str | None
"""A namespace; None is the whole cluster."""


class NamespaceAccess(StrEnum):
    """How the last list of a namespace ended."""

    UNKNOWN = "unknown"
    """It has not been listed yet."""
    READABLE = "listed"
    UNREADABLE = "refused"
    """The API server does not let the operator read it, or it does not exist."""
    UNAVAILABLE = "unanswered"
    """No answer, or an error that says nothing about the namespace, such as 429 or 500."""


@dataclass
class NamespaceState:
    """What is known about one namespace."""

    access: NamespaceAccess = NamespaceAccess.UNKNOWN
    last_contact: float = field(default_factory=time.monotonic)
    """When it was last listed, or refused."""
    error: Exception | None = None
    """Why the last list failed."""


class NamespaceRegistry:
    """The state of every watched namespace. Each change of access is logged once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states: dict[Scope, NamespaceState] = {name: NamespaceState() for name in names or (None,)}

    def get_scopes(self) -> list[Scope]:
        """Every namespace that is configured; None alone for the whole cluster."""
        return list(self.states)

    def get_names(self) -> list[str]:
        """Every namespace that is configured by its name."""
        return [name for name in self.states if name is not None]

    def get_failed_scopes(self) -> list[Scope]:
        """Namespaces whose last list failed."""
        return [name for name in self.get_names() if self.states[name].access is not NamespaceAccess.READABLE]

    def get_unreadable(self) -> set[str]:
        """Namespaces that cannot be read."""
        return {name for name in self.get_names() if self.states[name].access is NamespaceAccess.UNREADABLE}

    def get_list_errors(self) -> list[Exception]:
        """Errors of the lists that got no answer."""
        states = self.states.values()
        return [state.error for state in states if state.access is NamespaceAccess.UNAVAILABLE and state.error]

    def compute_silence_seconds(self) -> float:
        """Seconds since a list succeeded; if all namespaces are refused, since the API server said so."""
        states = self.states.values()
        readable = [state for state in states if state.access is not NamespaceAccess.UNREADABLE]
        return time.monotonic() - max(state.last_contact for state in readable or states)

    def record_list(self, name: Scope) -> None:
        """A namespace was listed."""
        if self._set_access(name, NamespaceAccess.READABLE) in (
            NamespaceAccess.UNREADABLE,
            NamespaceAccess.UNAVAILABLE,
        ):
            log.info("%s can be read again", _describe_scope(name))
        self.states[name].last_contact = time.monotonic()

    def record_unreadable(self, name: str, error: Exception) -> None:
        """A namespace cannot be read."""
        if self._set_access(name, NamespaceAccess.UNREADABLE, error) is not NamespaceAccess.UNREADABLE:
            log.warning(
                "%s cannot be read and is skipped until it can: %s; restore the operator's Role and RoleBinding in it, "
                "or remove it from watchNamespaces",
                _describe_scope(name), error,
            )  # fmt: skip
            if len(self.get_unreadable()) == len(self.states):
                log.error("none of the watched namespaces can be read, so the operator has no work")
        self.states[name].last_contact = time.monotonic()

    def record_failure(self, name: Scope, error: Exception) -> None:
        """A namespace could not be listed for a reason that will pass."""
        if self._set_access(name, NamespaceAccess.UNAVAILABLE, error) is not NamespaceAccess.UNAVAILABLE:
            log.warning("%s could not be listed: %s: %s", _describe_scope(name), type(error).__name__, error)

    def _set_access(self, name: Scope, access: NamespaceAccess, error: Exception | None = None) -> NamespaceAccess:
        """Set the access; returns the one before."""
        state = self.states[name]
        previous_access, state.access, state.error = state.access, access, error
        return previous_access


def _describe_scope(name: Scope) -> str:
    return f"namespace {name}" if name else "the cluster"
