"""The syntax of label selectors: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/."""

from __future__ import annotations

import re

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}"
_VALUE = rf"({_NAME})?"
_VALUES = rf"\(\s*{_VALUE}\s*(,\s*{_VALUE}\s*)*\)"
_REQUIREMENT = rf"\s*(!\s*{_KEY}|{_KEY}|{_KEY}\s*(=|==|!=)\s*{_VALUE}|{_KEY}\s+(in|notin)\s*{_VALUES})\s*"
_SELECTOR = re.compile(rf"{_REQUIREMENT}(,{_REQUIREMENT})*")


def check_label_selector(selector: str) -> str:
    """Return the label selector. Raises `ValueError` if it is not empty and the API server would reject it."""
    if selector and not _SELECTOR.fullmatch(selector):
        raise ValueError(
            f"{selector!r} is not a label selector; write requirements such as finetune.dev/enabled=true, "
            "team in (a,b) or !legacy, separated by commas"
        )
    return selector
