"""The date that chat templates write as the current one."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime

from finetune_trainer.contract import TEMPLATE_DATE_ENV, Reason
from finetune_trainer.errors import TrainerError


def read_template_date() -> date | None:
    """Return the date that the environment sets for all attempts of a run, or None. Raises `CONFIG_INVALID`."""
    text = os.environ.get(TEMPLATE_DATE_ENV)
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        message = f"{TEMPLATE_DATE_ENV} must be a date such as 2026-11-30, but is {text!r}"
        raise TrainerError(Reason.CONFIG_INVALID, message) from error


def get_current_date() -> date:
    """Return today's date in UTC."""
    return datetime.now(UTC).date()
