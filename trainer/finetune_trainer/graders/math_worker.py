"""The process that compares mathematical expressions: some take sympy forever, or all memory.

It reads one JSON object per line, `{"reference": …, "answer": …}`, and writes one verdict per line. Run as `python -m`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

READY, EQUAL, DIFFERENT, NO_REFERENCE = "ready", "equal", "different", "noReference"
TIMEOUT_SECONDS = 5
"""Time for one comparison, after which the caller ends the process."""
_ORPHAN_SECONDS = 3 * TIMEOUT_SECONDS
"""Time after which the process ends by itself: its caller was killed."""
_MAX_MEMORY = 2 << 30
_DELIMITERS = ("$", r"\boxed", r"\(", r"\[")


def main() -> None:
    """Answer requests until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries must not write between the verdicts
    logging.disable()
    importlib.import_module("math_verify")  # takes a second, which is not the time of the first comparison
    print(READY, file=output)
    for line in sys.stdin:
        signal.alarm(_ORPHAN_SECONDS)
        request = json.loads(line)
        print(_compare(request["reference"], request["answer"]), file=output)
        signal.alarm(0)


def _compare(reference: str, answer: str | None) -> str:
    """Return whether the values are equal. Without an answer, only the reference is parsed."""
    from math_verify import verify

    expected = next((parsed for parsed in reversed(list(_parse(reference))) if _has_expression(parsed)), None)
    if not expected:
        return NO_REFERENCE
    if answer is None:
        return EQUAL
    is_equal = any(verify(expected, parsed, timeout_seconds=None) for parsed in _parse(answer))
    return EQUAL if is_equal else DIFFERENT


def _has_expression(parsed: list[Any]) -> bool:
    """Return whether anything was read: the library adds the text itself, also if it reads nothing in it."""
    return any(not isinstance(value, str) for value in parsed)


def _parse(text: str) -> Iterator[list[Any]]:
    """Yield the expressions that are found in a text, and if it has no delimiters of LaTeX, those of all of it as
    LaTeX."""
    from math_verify import parse

    yield parse(text, parsing_timeout=None)
    if not any(delimiter in text for delimiter in _DELIMITERS):
        yield parse(f"${text}$", parsing_timeout=None)


if __name__ == "__main__":
    main()
