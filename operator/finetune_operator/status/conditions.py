"""Builder of the conditions of a status. The first one has the message, and the others refer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune_operator.api import Condition, ConditionType

MESSAGE_MAX_LENGTH = 4096


class Headline(NamedTuple):
    """What the conditions say."""

    expected: Mapping[ConditionType, bool]
    """Whether each condition is true. The first one has the message."""
    reason: str
    message: str
    generation: int
    """Generation of the spec that the conditions are based on."""


def build_conditions(headline: Headline, previous: Sequence[Condition], now: str) -> list[Condition]:
    """Return the conditions. The time of their last transition changes only with their status."""
    first = next(iter(headline.expected))
    previous_conditions = {condition.type: condition for condition in previous}
    conditions = []
    for condition_type, is_true in headline.expected.items():
        status = "True" if is_true else "False"
        old = previous_conditions.get(condition_type)
        message = headline.message if condition_type is first else f"See the condition {first}."
        conditions.append(
            Condition(
                type=condition_type,
                status=status,
                observed_generation=headline.generation,
                last_transition_time=old.last_transition_time if old and old.status == status else now,
                reason=headline.reason,
                message=message[:MESSAGE_MAX_LENGTH],
            )
        )
    return conditions
