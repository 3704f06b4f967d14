"""`plan --check`: the preflight checks of a run, without the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat

from finetune_trainer.config.loader import load_manifest
from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning.plan import RunResources, build_checked_plan, build_plan
from finetune_trainer.planning.plan_text import to_text

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ROWS = [chat("Which lamp?", "The red one. " * count) for count in range(1, 9)]
COMMAND_SCRIPT = """
import os, sys
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
sys.argv = ["finetune_trainer", *arguments, "--work-dir", folder]
from finetune_trainer import __main__ as command
command.main()
"""


@pytest.fixture
def jobs(s3: S3Server, tmp_path: Path) -> PlanJobWriter:
    return PlanJobWriter(s3, tmp_path)


def run_command(forks: ForkServer, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command of the trainer. Return its exit code, stdout and stderr."""
    credentials = {S3_CREDENTIALS_DIR_ENV: str(folder / "credentials")}
    script = f"folder, arguments = {str(folder)!r}, {arguments!r}{COMMAND_SCRIPT}"
    status = forks.wait(forks.start_script(script, credentials))
    return status, (folder / "out").read_text(), (folder / "err").read_text()


def test_check_command_prints_plan_with_findings(jobs: PlanJobWriter, forks: ForkServer, tmp_path: Path) -> None:
    jobs.upload_model(build(tmp_path / "tiny"))
    manifest = jobs.write(ROWS)
    before = {path.name for path in tmp_path.iterdir()}
    status, out, err = run_command(forks, tmp_path, "plan", "--check", "--json", "--show-rows", "2", str(manifest))
    assert status == 0, err
    plan = json.loads(out)
    assert {finding["status"] for finding in plan["preflight"]} == {"passed"}
    finding = next(finding for finding in plan["preflight"] if finding["check"] == "loss")
    assert finding["value"] == pytest.approx(finding["expected"], rel=1e-3)
    assert [row["location"].rpartition(" ")[2] for row in plan["rows"]] == ["1", "2"]
    assert plan["steps"] == build_plan(load_manifest(manifest), tmp_path).steps
    assert not jobs.s3.list_keys(f"s3://results/{jobs.name}")
    assert {path.name for path in tmp_path.iterdir()} == before | {"out", "err"}


def test_check_command_failed_check_prints_plan_and_reason(
    jobs: PlanJobWriter, forks: ForkServer, tmp_path: Path
) -> None:
    jobs.upload_model(
        build_family(tmp_path / "model", "ctrl", n_layer=2, n_embd=64, n_head=4, dff=128, n_positions=512)
    )
    manifest = jobs.write(ROWS)
    status, out, err = run_command(forks, tmp_path, "plan", "--check", str(manifest))
    assert status == Reason.CONFIG_INVALID.exit_code
    assert "rows kept" in out
    assert "check: " not in out
    assert err.splitlines()[-1].startswith("ConfigInvalid: training.gradientCheckpointing: CTRLLMHeadModel does not")


def test_check_text_shows_each_finding(jobs: PlanJobWriter, tmp_path: Path) -> None:
    jobs.upload_model(build(tmp_path / "tiny"))
    config = load_manifest(jobs.write(ROWS, packing=True))
    checked_lines = to_text(build_checked_plan(config, tmp_path)).splitlines()
    results = {tuple(line.split()[1:3]) for line in checked_lines if line.startswith("check: ")}
    assert results >= {("loss", "passed:"), ("packing", "passed:")}
    assert "check: " not in to_text(build_plan(config, tmp_path))


def test_check_too_large_model_is_warning_without_download(jobs: PlanJobWriter, tmp_path: Path) -> None:
    model_dir = build(tmp_path / "tiny")
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**7, 10**7], "data_offsets": [0, 4 * 10**14]}}).encode()
    (model_dir / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    jobs.upload_model(model_dir)
    (finding,) = build_checked_plan(load_manifest(jobs.write(ROWS)), tmp_path).preflight
    assert (finding.check, finding.status) == ("memory", "warning")
    assert finding.message.startswith("nothing was checked: the base model needs about 400.2 TiB in fp32, but only ")


def test_check_damaged_weights_fail_as_run(jobs: PlanJobWriter, tmp_path: Path) -> None:
    model_dir = build(tmp_path / "tiny")
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    jobs.upload_model(model_dir)
    with pytest.raises(TrainerError) as caught:
        build_checked_plan(load_manifest(jobs.write(ROWS)), tmp_path)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_check_several_ranks_reject_unsloth(jobs: PlanJobWriter, tmp_path: Path) -> None:
    jobs.upload_model(build(tmp_path / "tiny"))
    with pytest.raises(TrainerError, match="unsloth supports a single process only"):
        build_checked_plan(load_manifest(jobs.write(ROWS, backend="unsloth")), tmp_path, RunResources(world_size=2))
