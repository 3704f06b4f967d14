"""Builders of FineTuneSweeps, and a sweep whose FineTuneJobs are simulated in memory."""

from __future__ import annotations

from typing import Any

from tests.support.operator.builders import NOW, Body, build_manifest, merge_objects

from finetune_operator.api.sweep import FineTuneSweep, FineTuneSweepStatus, TrialStatus
from finetune_operator.status.sweeps import sweep_state, trials
from finetune_operator.status.sweeps.decisions import decide
from finetune_operator.status.sweeps.scheduling import TrialPlan
from finetune_operator.status.sweeps.sweep_state import ReportState, SweepFacts
from finetune_operator.status.sweeps.sweep_status import compute_sweep_status
from finetune_trainer.contract import SweepReport

RUN_SPEC = build_manifest(
    spec={
        "dataset": {"validation": {"sources": [{"uri": "s3://bucket/validation.jsonl"}]}},
        "output": {"uri": "s3://bucket/lr/{name}"},
    }
)["spec"]
REPORT = SweepReport(report_uri="s3://bucket/lr/report.html", verdict="Better", message="It is better.")
DIGEST = "sha256:" + "0" * 64


def build_sweep(name: str = "lr", namespace: str = "team", spec: Body | None = None) -> Body:
    """Build a FineTuneSweep as a user writes it: three learning rates, and what the spec changes."""
    base = {
        "template": {"spec": RUN_SPEC},
        "parameters": {"learningRate": {"values": [1e-4, 3e-4, 1e-3]}},
        "output": {"uri": "s3://bucket/lr/"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneSweep",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merge_objects(base, spec or {}),
    }


def parse_sweep(spec: Body | None = None) -> FineTuneSweep:
    """Return a FineTuneSweep as the operator reads it."""
    body = build_sweep(spec=spec)
    return FineTuneSweep.model_validate({**body, "metadata": {**body["metadata"], "uid": "uid-lr", "generation": 1}})


def build_child_body(name: str, condition: str | None = None, spec: Body | None = None, **status: Any) -> Body:
    """Build the FineTuneJob of a trial as it is cached. `condition` is the one that is true."""
    conditions = [{"type": condition, "status": "True"}] if condition else []
    return {
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"suspend": False, "cancel": False, **(spec or {})},
        "status": {"conditions": conditions, **status},
    }


class SimulatedSweep:
    """A sweep with stored status and FineTuneJobs. It keeps nothing else, like an operator that restarts each time."""

    def __init__(self, spec: Body | None = None) -> None:
        self.sweep = parse_sweep(spec)
        self.trials = trials.list_sweep_trials(self.sweep.spec)
        self.status = FineTuneSweepStatus()
        self.children: dict[str, Body] = {}
        self.results: dict[str, trials.TrialResult] = {}

    def edit(self, **spec: Any) -> None:
        """Change fields of the sweep's spec."""
        self.sweep = self.sweep.model_copy(update={"spec": self.sweep.spec.model_copy(update=spec)})

    def reconcile(self, writes: int | None = None) -> FineTuneSweepStatus:
        """Do what the reconciler does. With `writes`, the operator is killed after so many writes."""
        _, plan = self.observe()
        steps = [
            *(("create", row.name) for row in plan.creations),
            ("store", ""),
            *(("patch", n) for n in plan.patches),
        ]
        for action, name in steps[:writes]:
            if action == "create":
                spec = {"suspendAtStep": min(self.sweep.spec.halving.at_steps)} if self.sweep.spec.halving else {}
                self.children[name] = build_child_body(name, spec=spec)
            elif action == "patch":
                self._patch(name, plan.patches[name])
            else:
                self.status = self.compute_status()
        return self.status

    def observe(self) -> tuple[SweepFacts, TrialPlan]:
        """Return what the state follows from, and what must be written."""
        spec = self.sweep.spec
        states = {name: trials.read_child(body) for name, body in self.children.items()}
        rows = [self._observe_row(row, states) for row in trials.build_rows("lr", self.trials, self.status.trials)]
        decision = decide(spec, self.status, rows, states)
        report = ReportState(report=REPORT) if sweep_state.must_report(spec, decision.rows) else None
        facts = SweepFacts(spec, decision.rows, states, decision.step, decision.compared_at_step, report=report)
        return facts, decision.plan

    def compute_status(self) -> FineTuneSweepStatus:
        """Return the status that follows from what is stored."""
        return compute_sweep_status(self.sweep.metadata, self.status, self.observe()[0], NOW)

    def report(self, name: str, condition: str, **status: Any) -> None:
        """Act as the controller of FineTuneJobs."""
        body = self.children[name]
        conditions = [{"type": condition, "status": "True"}]
        self.children[name] = {**body, "status": {**body["status"], "conditions": conditions, **status}}

    def complete(self, name: str, value: float | None, **status: Any) -> None:
        """Act as the controller of FineTuneJobs for a run that has published its result."""
        self.results[name] = trials.TrialResult(value=value, adapter_uri=f"s3://bucket/lr/{name}", digest=DIGEST)
        self.report(name, "Complete", **status)

    def reach_step(self, name: str, step: int, loss: float) -> None:
        """Act as the controller of FineTuneJobs for a run that is at its step to stop at."""
        self.report(name, "Suspended", reason="StepReached", stepResult={"step": step, "evalLoss": loss})

    def list_active(self) -> list[str]:
        """Return the FineTuneJobs that have or want GPUs."""
        return [name for name, body in self.children.items() if trials.read_child(body).is_active]

    def get_row(self, name: str) -> TrialStatus:
        """Return the stored row of a trial."""
        return next(row for row in self.status.trials if row.name == name)

    def _observe_row(self, row: TrialStatus, states: dict[str, trials.ChildState]) -> TrialStatus:
        if trials.is_ended(row):
            return row
        if row.name not in states:
            return trials.mark_deleted(row) if row.created else row
        return trials.update_row(row, states[row.name], self.results.get(row.name))

    def _patch(self, name: str, patch: Body) -> None:
        body = self.children[name]
        self.children[name] = {**body, "spec": {**body["spec"], **patch}}
