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


class Access(StrEnum):
    """How the last list of a namespace ended."""

    UNKNOWN = "unknown"
    """It has not been listed yet."""
    LISTED = "listed"
    REFUSED = "refused"
    """The API server does not let the operator read it, or it does not exist."""
    UNANSWERED = "unanswered"
    """No answer, or an error that says nothing about the namespace, such as 429 or 500."""


@dataclass
class State:
    """What is known about one namespace."""

    access: Access = Access.UNKNOWN
    answered: float = field(default_factory=time.monotonic)
    """When it was last listed, or refused."""
    error: Exception | None = None
    """Why the last list failed."""


class Namespaces:
    """The state of every watched namespace. Each change of access is logged once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states: dict[Scope, State] = {name: State() for name in names or (None,)}

    def all(self) -> list[Scope]:
        """Every namespace that is configured; None alone for the whole cluster."""
        return list(self.states)

    def names(self) -> list[str]:
        """Every namespace that is configured by its name."""
        return [name for name in self.states if name is not None]

    def unlisted(self) -> list[Scope]:
        """Namespaces whose last list failed."""
        return [name for name in self.names() if self.states[name].access is not Access.LISTED]

    def refused(self) -> set[str]:
        """Namespaces that cannot be read."""
        return {name for name in self.names() if self.states[name].access is Access.REFUSED}

    def errors(self) -> list[Exception]:
        """Errors of the lists that got no answer."""
        states = self.states.values()
        return [state.error for state in states if state.access is Access.UNANSWERED and state.error]

    def silence(self) -> float:
        """Seconds since a list succeeded; if all namespaces are refused, since the API server said so."""
        states = self.states.values()
        readable = [state for state in states if state.access is not Access.REFUSED]
        return time.monotonic() - max(state.answered for state in readable or states)

    def record_list(self, name: Scope) -> None:
        """A namespace was listed."""
        if self._change(name, Access.LISTED) in (Access.REFUSED, Access.UNANSWERED):
            log.info("%s can be read again", _describe(name))
        self.states[name].answered = time.monotonic()

    def record_refusal(self, name: str, error: Exception) -> None:
        """A namespace cannot be read."""
        if self._change(name, Access.REFUSED, error) is not Access.REFUSED:
            log.warning(
                "%s cannot be read and is skipped until it can: %s; restore the operator's Role and RoleBinding in it, "
                "or remove it from watchNamespaces",
                _describe(name), error,
            )  # fmt: skip
            if len(self.refused()) == len(self.states):
                log.error("none of the watched namespaces can be read, so the operator has no work")
        self.states[name].answered = time.monotonic()

    def record_failure(self, name: Scope, error: Exception) -> None:
        """A namespace could not be listed for a reason that will pass."""
        if self._change(name, Access.UNANSWERED, error) is not Access.UNANSWERED:
            log.warning("%s could not be listed: %s: %s", _describe(name), type(error).__name__, error)

    def _change(self, name: Scope, access: Access, error: Exception | None = None) -> Access:
        """Set the access; returns the one before."""
        state = self.states[name]
        before, state.access, state.error = state.access, access, error
        return before


def _describe(name: Scope) -> str:
    return f"namespace {name}" if name else "the cluster"
