"""`finetune-trainer run`: run the pipeline in this process, or in one process per GPU of this node."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from finetune_trainer import pipeline, run_setup
from finetune_trainer.cli import launcher
from finetune_trainer.cli.app import resolve_scratch
from finetune_trainer.config import loader
from finetune_trainer.contract import JOB_ENV, SUSPEND_AT_STEP_ENV, Outcome, Reason, Stage, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.telemetry import http_server
from finetune_trainer.telemetry.termination_message import OutcomeRecorder


def run_command(args: argparse.Namespace, recorder: OutcomeRecorder) -> Outcome:
    """Run the manifest of the command line, or the configuration of the pod, while progress is served from the pod."""
    if args.manifest is None and topology.is_rank_zero() and not _is_launcher():
        http_server.start_server(recorder.progress)
    config = loader.load_manifest(args.manifest) if args.manifest else loader.load_from_environment()
    if args.manifest:  # in the environment, so that the ranks that are launched know it
        os.environ.setdefault(JOB_ENV, loader.read_job_name(args.manifest))
    if args.suspend_at_step:
        os.environ[SUSPEND_AT_STEP_ENV] = args.suspend_at_step
    outcome = run_or_launch(config, resolve_scratch(args), recorder)
    if outcome.reason.exit_code == 0 and outcome.reason is not Reason.STEP_REACHED:
        recorder.progress.update(stage=Stage.DONE, percentage=100)
    return outcome


def run_or_launch(config: TrainerConfig, scratch: Path, recorder: OutcomeRecorder) -> Outcome:
    """Run the pipeline here, or launch the ranks of this node if the run has several and no result is published."""
    with run_setup.store_resolution_failure(config, scratch, recorder):
        resolved = run_setup.resolve_run(config)
    if _is_launcher() and resolved.published is None:
        return launcher.launch_ranks(scratch, recorder, config.training.stall_seconds, sys.argv[1:])
    return pipeline.run(resolved, scratch, recorder)


def _is_launcher() -> bool:
    """Return whether this process is to start the ranks of its node, and is no rank itself."""
    return topology.world_size() == 1 and topology.topology_from_env().world_size > 1
