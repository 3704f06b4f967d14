"""Regular expressions of users, in linear time: no pattern makes an answer take long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import re2

_MAX_BYTES = 1 << 23
"""Maximum size of a compiled pattern; RE2's default."""


class RegularExpression:
    """A compiled regular expression of RE2."""

    def __init__(self, pattern: str, field: str, *, ignore_case: bool = False) -> None:
        """Compile the pattern. Raises `CONFIG_INVALID`, which names `field`, if RE2 refuses it."""
        self._pattern = _compile(pattern, field, ignore_case)

    def matches(self, text: str) -> bool:
        """Return whether the pattern occurs in the text."""
        return self._pattern.search(text) is not None

    def find_all(self, text: str) -> Iterator[str]:
        """Yield all matches: the first group of the pattern, if it has groups."""
        group = 1 if self._pattern.groups else 0
        return (match.group(group) or "" for match in self._pattern.finditer(text))


def _compile(pattern: str, field: str, ignore_case: bool) -> re2._Regexp:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_BYTES
    options.case_sensitive = not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        problem = _describe(error)
        raise TrainerError(
            Reason.CONFIG_INVALID,
            f"{field}: {pattern[:80]!r} is not a regular expression of RE2: {problem}; RE2 has no lookaround and no "
            "backreferences",
        ) from error


def _describe(error: Exception) -> str:
    message = error.args[0] if error.args else ""
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)
