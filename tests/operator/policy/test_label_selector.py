"""Label selectors are accepted or rejected as by the API server."""

from __future__ import annotations

import pytest

from finetune_operator.policy.label_selector import check_label_selector

ACCEPTED = (
    "", "team=a", "team==a", "team!=a", "finetune.dev/enabled=true", "team", "!team", "team in (a,b)", "team notin (a)",
    " finetune.dev/enabled = true , team in ( a , b ) ,!legacy", "team=", "team in (a,)",
)  # fmt: skip
REJECTED = (
    "=a",
    "team=a=b",
    "team in a",
    "team in (a",
    "team a",
    ",",
    "team=a,",
    "Team/x/y=a",
    "team=ä",
    "team=-a",
    "!",
)


@pytest.mark.parametrize("selector", ACCEPTED)
def test_label_selector_valid_is_returned(selector: str) -> None:
    assert check_label_selector(selector) == selector


@pytest.mark.parametrize("selector", REJECTED)
def test_label_selector_invalid_raises_with_example(selector: str) -> None:
    with pytest.raises(ValueError, match=r"is not a label selector; write requirements such as finetune.dev/enabled"):
        check_label_selector(selector)
