"""Tests of runs that exceed a limit on the address space: the message names the setting to lower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import QUIET_ENV, TRAINING_TIMEOUT
from tests.support.trainer.trainer_process import ROOT, make_rows

from finetune_trainer.contract import CONFIG_ENV, OUTCOME_PATH_ENV, Outcome, Reason, TrainerConfig

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

BUILD_SCRIPT = """
import sys
from tests.support.trainer import tiny_model

words = tiny_model.tokenizer()
from transformers import LlamaConfig, LlamaForCausalLM

shape = LlamaConfig(
    vocab_size=len(words), hidden_size=512, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=4
)
LlamaForCausalLM(shape).save_pretrained(sys.argv[1])
words.save_pretrained(sys.argv[1])
"""
RUN_SCRIPT = """
import os, resource, sys
from pathlib import Path
from finetune_trainer import __main__ as command
from finetune_trainer.cli import app
from finetune_trainer.config import loader
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.pipeline import run
from finetune_trainer.run_setup import resolve_run

class Tight(ProgressReporter):
    def update(self, **fields):
        super().update(**fields)
        if fields.get("stage") == sys.argv[1] and resource.getrlimit(resource.RLIMIT_AS)[1] < 0:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)

recorder = termination_message.OutcomeRecorder(Tight())
config = loader.load_from_environment()
outcome = command._run_to_outcome(lambda: run(resolve_run(config), Path(sys.argv[3]), recorder))
termination_message.write_outcome(outcome)
os._exit(0)
"""
STAGES = {
    # stage, MiB that are free in it, expected parts of the message
    "loading": ("Loading", 1, ["not enough memory to load the base model", "use a smaller model"]),
    "training": ("Training", 20, ["train with batchSize 64", "lower training.batchSize", "or model.maxLength"]),
}


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(2 * TRAINING_TIMEOUT)
@pytest.mark.parametrize(("stage", "free_mib", "expected_texts"), STAGES.values(), ids=STAGES)
def test_run_out_of_memory_names_setting_to_lower(
    s3: S3Server, tmp_path: Path, stage: str, free_mib: int, expected_texts: list[str]
) -> None:
    model = tmp_path / "model"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD_SCRIPT, model], cwd=ROOT, check=True, capture_output=True
    )
    for path in model.iterdir():
        s3.put(f"s3://models/memory/{path.name}", path.read_bytes())
    s3.put("s3://data/memory.jsonl", make_rows(200))
    config = {
        "model": {"uri": "s3://models/memory/", "maxLength": 128},
        "dataset": {"sources": [{"uri": "s3://data/memory.jsonl"}]},
        "training": {"maxSteps": 2, "backend": "transformers", "batchSize": 64},
        "output": {"uri": f"s3://results/{tmp_path.name}"},
        "storage": {"endpoint": s3.endpoint},
    }
    environment = {
        **os.environ,
        **QUIET_ENV,
        "OMP_NUM_THREADS": "1",
        CONFIG_ENV: json.dumps(TrainerConfig.model_validate(config).to_json()),
        OUTCOME_PATH_ENV: str(tmp_path / "outcome"),
    }
    line = [sys.executable, "-W", "ignore", "-c", RUN_SCRIPT, stage, str(free_mib * 2**20), tmp_path]
    done = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert outcome.reason is Reason.OUT_OF_MEMORY, done.stderr
    for text in expected_texts:
        assert text in outcome.message
