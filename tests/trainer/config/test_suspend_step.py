"""Tests of the step that the environment stops the training at."""

from __future__ import annotations

import pytest
from tests.support.trainer.tiny_model import config

from finetune_trainer.config.suspend_step import read_suspend_step
from finetune_trainer.contract import SUSPEND_AT_STEP_ENV, Reason
from finetune_trainer.errors import TrainerError


@pytest.mark.parametrize(("text", "step"), [(None, None), ("", None), ("1", 1), ("2147483647", 2**31 - 1)])
def test_suspend_step_is_read(monkeypatch: pytest.MonkeyPatch, text: str | None, step: int | None) -> None:
    if text is None:
        monkeypatch.delenv(SUSPEND_AT_STEP_ENV, raising=False)
    else:
        monkeypatch.setenv(SUSPEND_AT_STEP_ENV, text)
    assert read_suspend_step(config({})) == step


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", " 5", "٣", "9" * 5000])
def test_suspend_step_that_is_no_step_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SUSPEND_AT_STEP_ENV, text)
    with pytest.raises(TrainerError, match="FINETUNE_SUSPEND_AT_STEP must be an optimizer step") as caught:
        read_suspend_step(config({}))
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert len(caught.value.message) < 250


def test_suspend_step_of_cross_validation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUSPEND_AT_STEP_ENV, "5")
    with pytest.raises(TrainerError, match=r"cannot be used with training\.crossValidation") as caught:
        read_suspend_step(config({"crossValidation": {"folds": 2}}))
    assert caught.value.reason is Reason.CONFIG_INVALID
