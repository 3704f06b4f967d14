"""Results and checkpoints of earlier versions are handled as docs/design/0010-compatibility.md specifies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.untrained_runs import run_untrained
from tests.trainer.compatibility.recorded import OUTPUT_URI, RECORDED_DIR, build_config, start_trainer, store_inputs

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.recipe import RECIPE

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

RESULTS = sorted(path.name for path in (RECORDED_DIR / "results").iterdir())
CHECKPOINTS = sorted(path.name for path in (RECORDED_DIR / "checkpoints").iterdir())


@pytest.fixture
def output(s3: S3Server) -> Iterator[str]:
    """The output of the recorded runs, empty before and after."""
    store_inputs(s3)
    yield OUTPUT_URI
    for key in s3.list_keys(f"{OUTPUT_URI}/"):
        s3.client.delete_object(Bucket="results", Key=key)


@pytest.mark.parametrize("name", RESULTS)
def test_run_recorded_result_is_already_complete(s3: S3Server, output: str, tmp_path: Path, name: str) -> None:
    content = (RECORDED_DIR / "results" / name / "manifest.json").read_bytes()
    recorded = json.loads(content)
    s3.put(f"{output}/manifest.json", content)
    outcome = run_untrained(build_config(s3, {"output": {"merged": recorded["config"]["output"]["merged"]}}), tmp_path)
    assert outcome.reason is Reason.ALREADY_COMPLETE
    recipe = recorded.get("recipe", 1)
    assert (f"trained with recipe {recipe}" in outcome.message) is (recipe != RECIPE)
    assert outcome.result
    assert outcome.result.digest == "sha256:" + hashlib.sha256(content).hexdigest()
    assert outcome.result.metrics == recorded["metrics"]


def test_checkpoint_current_recipe_is_recorded() -> None:
    assert f"recipe-{RECIPE}" in CHECKPOINTS


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_run_recorded_checkpoint_resumes_own_recipe_only(s3: S3Server, output: str, tmp_path: Path, name: str) -> None:
    config = build_config(s3)
    folder = RECORDED_DIR / "checkpoints" / name
    for path in folder.iterdir():
        s3.put(f"{output}/.checkpoints/{config.digest().removeprefix('sha256:')}/step-2/{path.name}", path.read_bytes())
    with start_trainer(config, tmp_path) as process:
        process.wait(TRAINING_TIMEOUT)
    log = (tmp_path / "log").read_text()
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert outcome.reason is Reason.COMPLETED, log
    recipe = int(name.removeprefix("recipe-"))
    if recipe == RECIPE:
        assert "resuming from step 2" in log
    else:
        assert f"it was trained with recipe {recipe}, this trainer uses recipe {RECIPE}" in log
        assert "training starts from the beginning" in log
