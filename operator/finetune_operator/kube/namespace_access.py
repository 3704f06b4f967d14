"""Which namespaces are watched and can be read. Each has its own state, so that losing one does not stop others."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Container
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

    def __init__(self, scopes: Collection[Scope]) -> None:
        self.states: dict[Scope, NamespaceState] = {scope: NamespaceState() for scope in scopes}
        self._replaced_at = time.monotonic()

    def replace_names(self, names: Collection[str]) -> set[Scope]:
        """Watch exactly these namespaces from now on. Return the added ones."""
        added_names = set(names) - self.states.keys()
        for name in self.states.keys() - set(names):
            del self.states[name]
        self.states |= {name: NamespaceState() for name in sorted(added_names)}
        self._replaced_at = time.monotonic()
        return {*added_names}

    def get_scopes(self) -> list[Scope]:
        """Return all watched namespaces, or only None for the cluster."""
        return list(self.states)

    def get_names(self) -> list[str]:
        """Return the names of all watched namespaces, none if the whole cluster is watched."""
        return [name for name in self.states if name is not None]

    def is_watched(self, name: Scope) -> bool:
        """Return whether the objects of this namespace are watched."""
        return name in self.states or None in self.states

    def is_unreadable(self, name: Scope) -> bool:
        """Return whether this namespace cannot be read."""
        return name in self.states and self.states[name].access is NamespaceAccess.UNREADABLE

    def get_listed_names(self) -> set[str]:
        """Return the namespaces that were listed, also if the last list failed for a temporary reason."""
        unlisted = (NamespaceAccess.UNKNOWN, NamespaceAccess.UNREADABLE)
        return {name for name in self.get_names() if self.states[name].access not in unlisted}

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
        """Return the seconds since the last successful list, or the last refusal if all namespaces are refused.

        Without any namespace, they are the seconds since the names of the namespaces were listed.
        """
        states = self.states.values()
        readable = [state for state in states if state.access is not NamespaceAccess.UNREADABLE]
        return time.monotonic() - max((state.last_contact for state in readable or states), default=self._replaced_at)

    def record_list(self, name: Scope) -> None:
        """Record a successful list."""
        if self._set_access(name, NamespaceAccess.READABLE) in (
            NamespaceAccess.UNREADABLE,
            NamespaceAccess.UNAVAILABLE,
        ):
            log.info("%s can be read again", _describe_scope(name))

    def record_unreadable(self, name: str, error: Exception) -> None:
        """Record that a namespace cannot be read."""
        if self._set_access(name, NamespaceAccess.UNREADABLE, error) is not NamespaceAccess.UNREADABLE:
            log.warning(
                "%s cannot be read and is skipped: %s; restore the operator's Role and RoleBinding in it, "
                "or do not watch it any more",
                _describe_scope(name), error,
            )  # fmt: skip
            if len(self.get_unreadable()) == len(self.states):
                log.error("none of the watched namespaces can be read, so nothing is reconciled")

    def record_failure(self, name: Scope, error: Exception) -> None:
        """Record a list that failed for a temporary reason."""
        if self._set_access(name, NamespaceAccess.UNAVAILABLE, error) is not NamespaceAccess.UNAVAILABLE:
            log.warning("failed to list %s, retrying: %s: %s", _describe_scope(name), type(error).__name__, error)

    def _set_access(self, name: Scope, access: NamespaceAccess, error: Exception | None = None) -> NamespaceAccess:
        """Set the access. Return the previous one, which is the same if the namespace is no longer watched."""
        state = self.states.get(name)
        if state is None:  # it was removed while it was listed
            return access
        previous_access, state.access, state.error = state.access, access, error
        if access is not NamespaceAccess.UNAVAILABLE:
            state.last_contact = time.monotonic()
        return previous_access


class UnreadableNamespaces(Container[str]):
    """The namespaces whose objects must be left alone: they cannot be read, or are no longer watched."""

    def __init__(self, namespaces: NamespaceRegistry) -> None:
        self._namespaces = namespaces

    def __contains__(self, name: object) -> bool:
        scope = name if isinstance(name, str) else None
        return not self._namespaces.is_watched(scope) or self._namespaces.is_unreadable(scope)


def _describe_scope(name: Scope) -> str:
    return f"namespace {name}" if name else "the cluster"
