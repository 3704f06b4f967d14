"""The digest of a stored config never changes: by it results are found and checkpoints are resumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.trainer.tiny_model import config
from tests.trainer.compatibility.recorded import RECORDED_DIR

from finetune_trainer.contract import TrainerConfig

RECORDED: dict[str, dict[str, Any]] = json.loads((RECORDED_DIR / "digests.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_digest_stored_config_matches_recorded(name: str) -> None:
    assert TrainerConfig.model_validate(RECORDED[name]["config"]).digest() == RECORDED[name]["digest"]


@pytest.mark.parametrize("name", RECORDED)
def test_digest_without_defaults_matches_recorded(name: str) -> None:
    """A later version may add a field: absent and default have to mean the same."""
    config = TrainerConfig.model_validate(RECORDED[name]["config"])
    sparse = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    assert TrainerConfig.model_validate(sparse).digest() == RECORDED[name]["digest"]


@pytest.mark.parametrize(
    ("stored", "written"),
    [({}, {"batching": "padded"}), ({"packing": True}, {"batching": "packed"})],
    ids=["padded", "packed"],
)
def test_digest_batching_that_means_the_same_is_equal(stored: dict[str, Any], written: dict[str, Any]) -> None:
    digests = [config({"kernels": "standard", **training}).digest() for training in (stored, written)]
    assert digests[0] == digests[1]
    assert digests[0] != config({"batching": "paddingFree"}).digest()
