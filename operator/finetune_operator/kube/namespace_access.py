"""Which of the watched namespaces can be read. Each has its own state, so that losing one does not stop others."""

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
    """Not listed yet."""
    READABLE = "listed"
    UNREADABLE = "refused"
    """The operator has no permission to read it, or it does not exist."""
    UNAVAILABLE = "unanswered"
    """No response, or an error that does not concern the namespace, such as 429 or 500."""


@dataclass
class NamespaceState:
    """What is known about one namespace."""

    access: NamespaceAccess = NamespaceAccess.UNKNOWN
    last_contact: float = field(default_factory=time.monotonic)
    """Monotonic time of the last list or refusal."""
    error: Exception | None = None
    """Why the last list failed."""


class NamespaceRegistry:
    """The state of every watched namespace. Each change of access is logged once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states: dict[Scope, NamespaceState] = {name: NamespaceState() for name in names or (None,)}

    def get_scopes(self) -> list[Scope]:
        """Return all configured namespaces, or only None for the cluster."""
        return list(self.states)

    def get_names(self) -> list[str]:
        """Return the names of all configured namespaces."""
        return [name for name in self.states if name is not None]

    def get_failed_scopes(self) -> list[Scope]:
        """Return the namespaces whose last list failed."""
        return [name for name in self.get_names() if self.states[name].access is not NamespaceAccess.READABLE]

    def get_unreadable(self) -> set[str]:
        """Return the namespaces that cannot be read."""
        return {name for name in self.get_names() if self.states[name].access is NamespaceAccess.UNREADABLE}

    def get_list_errors(self) -> list[Exception]:
        """Return the errors of lists that failed for another reason than missing permissions."""
        states = self.states.values()
        return [state.error for state in states if state.access is NamespaceAccess.UNAVAILABLE and state.error]

    def compute_silence_seconds(self) -> float:
        """Return the seconds since the last successful list, or the last refusal if all namespaces are refused."""
        states = self.states.values()
        readable = [state for state in states if state.access is not NamespaceAccess.UNREADABLE]
        return time.monotonic() - max(state.last_contact for state in readable or states)

    def record_list(self, name: Scope) -> None:
        """Record a successful list."""
        if self._set_access(name, NamespaceAccess.READABLE) in (
            NamespaceAccess.UNREADABLE,
            NamespaceAccess.UNAVAILABLE,
        ):
            log.info("%s can be read again", _describe_scope(name))
        self.states[name].last_contact = time.monotonic()

    def record_unreadable(self, name: str, error: Exception) -> None:
        """Record that a namespace cannot be read."""
        if self._set_access(name, NamespaceAccess.UNREADABLE, error) is not NamespaceAccess.UNREADABLE:
            log.warning(
                "%s cannot be read and is skipped: %s; restore the operator's Role and RoleBinding in it, "
                "or remove it from watchNamespaces",
                _describe_scope(name), error,
            )  # fmt: skip
            if len(self.get_unreadable()) == len(self.states):
                log.error("none of the watched namespaces can be read, so nothing is reconciled")
        self.states[name].last_contact = time.monotonic()

    def record_failure(self, name: Scope, error: Exception) -> None:
        """Record a list that failed for a temporary reason."""
        if self._set_access(name, NamespaceAccess.UNAVAILABLE, error) is not NamespaceAccess.UNAVAILABLE:
            log.warning("failed to list %s, retrying: %s: %s", _describe_scope(name), type(error).__name__, error)

    def _set_access(self, name: Scope, access: NamespaceAccess, error: Exception | None = None) -> NamespaceAccess:
        """Set the access. Return the previous one."""
        state = self.states[name]
        previous_access, state.access, state.error = state.access, access, error
        return previous_access


def _describe_scope(name: Scope) -> str:
    return f"namespace {name}" if name else "the cluster"
