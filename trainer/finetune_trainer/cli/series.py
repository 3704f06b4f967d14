"""`finetune-trainer plan` of a FineTuneSchedule or a FineTuneSweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from finetune_trainer.cli import app
from finetune_trainer.config import loader
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning import plan_text, series
from finetune_trainer.planning.plan import read_resources


def format_series_plan(args: argparse.Namespace, kind: str, spec: Mapping[str, Any]) -> str:
    """Return the plan of all runs, and that of one with the values of the template.

    Raises `CONFIG_INVALID` for options that apply to a single run only, and as `series.plan_sweep`.
    """
    if args.check or args.show_rows:
        raise TrainerError(Reason.CONFIG_INVALID, f"--check and --show-rows apply to a FineTuneJob, not to a {kind}")
    template = loader.load_template(args.manifest)
    build = series.plan_sweep if kind == "FineTuneSweep" else series.plan_schedule
    with redirect_stdout(sys.stderr):  # Unsloth greets on stdout, which is for the plan
        resources = read_resources(args.manifest)
        plan = build(spec, template, app.resolve_scratch(args), resources)
    return (
        plan.model_dump_json(by_alias=True, indent=2)
        if args.json
        else plan_text.series_to_text(plan, args.gpu_hour_price)
    )
