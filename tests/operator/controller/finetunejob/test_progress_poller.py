"""Which pods are polled for progress, and when their progress has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.controller.finetunejob import progress_poller
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

GOOD = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "loss": 1.25, "lastUpdateTime": "t"}


@pytest.mark.parametrize(
    ("pod", "address"),
    [({"podIP": "10.0.0.7"}, "10.0.0.7"), ({"podIP": "fd00::7"}, "fd00::7"), ({"podIP": ""}, None), ({}, None)],
)
def test_find_pod_address_returns_pod_ip(build: type[Builders], pod: dict[str, Any], address: str | None) -> None:
    assert progress_poller.find_pod_address(build.pod(**pod)) == address


def test_find_pod_address_pod_on_host_network_is_none(build: type[Builders]) -> None:
    pod = build.pod(podIP="10.0.0.7")
    pod["spec"]["hostNetwork"] = True
    assert progress_poller.find_pod_address(pod) is None


def test_differs_ignores_last_update_time() -> None:
    old = Progress.model_validate(GOOD)
    assert progress_poller.has_changed(old, None)
    assert not progress_poller.has_changed(old.model_copy(update={"last_update_time": "later"}), old)
    assert progress_poller.has_changed(old.model_copy(update={"step": 5}), old)
