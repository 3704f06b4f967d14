"""Checks, reads, creates and changes the FineTuneJobs of a FineTuneSweep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from finetune_operator.api.objects import Body
from finetune_operator.api.sweep import FineTuneSweep, SweepReason, TrialStatus
from finetune_operator.controller.finetunesweep.request import SweepRequest
from finetune_operator.controller.run_control import Refusal, RefusalKind, RunControl
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.observed.objects import get_name, is_controlled_by
from finetune_operator.resources.trial import build_trial
from finetune_operator.status.sweeps import trials
from finetune_operator.status.sweeps.sweep_state import SweepProblem
from finetune_operator.status.sweeps.trials import ChildState
from finetune_trainer.contract import Trial

_REASONS = {
    RefusalKind.INVALID: SweepReason.INVALID_SPEC,
    RefusalKind.NOT_ALLOWED: SweepReason.NOT_ALLOWED,
    RefusalKind.REFUSED: SweepReason.TRIAL_REFUSED,
    RefusalKind.NAME_CONFLICT: SweepReason.NAME_CONFLICT,
}
_FORBIDDEN = 403
"""Status of an object that a quota, a policy or a webhook refuses. A later attempt may succeed."""
_TEMPLATE_PATH = re.compile(r"(?<![\w.-])(spec(?=[.:\[])|metadata(?=\.(?:labels|annotations)))")
"""The start of the path of a field of the template in a message about a FineTuneJob."""
_TEMPLATE_PREFIX = r"spec.template.\1"


class ObservedTrials(NamedTuple):
    """The rows of all trials, and their FineTuneJobs by name."""

    rows: list[TrialStatus]
    children: dict[str, Body]

    @property
    def states(self) -> dict[str, ChildState]:
        """What is read of the FineTuneJobs."""
        return {name: trials.read_child(body) for name, body in self.children.items()}


class TrialControl:
    """The FineTuneJobs of sweeps. All methods may raise `ApiError` or one of `CONNECTION_ERRORS`."""

    def __init__(self, cache: OwnerCache, run_control: RunControl) -> None:
        self._cache = cache
        self._run_control = run_control

    async def observe(self, request: SweepRequest, sweep: FineTuneSweep) -> ObservedTrials:
        """Return the trials as they are now. Results of complete ones are read once, and recorded in their rows."""
        children = {get_name(child): child for child in self._cache.list_children(request.body)}
        stored_rows = request.previous_status.trials
        rows = []
        for row in trials.build_rows(request.meta.name, request.trials, stored_rows):
            if trials.is_ended(row):
                rows.append(row)
                continue
            if row.created and row.name not in children and (stored := await self._read_owned(request, row.name)):
                children[row.name] = stored
            rows.append(await self._observe_row(request, sweep, row, children.get(row.name)))
        return ObservedTrials(rows, children)

    async def find_problem(self, request: SweepRequest, sweep: FineTuneSweep) -> SweepProblem | None:
        """Return why the API server or the bounds of the installation refuse a trial, or None if they refuse none."""
        for trial in request.trials:
            refusal = await self._run_control.try_create(_build_child(sweep, trial))
            if refusal:
                return self._describe_refusal(request, trial, refusal)
        return None

    async def create(self, request: SweepRequest, sweep: FineTuneSweep, row: TrialStatus) -> Body | SweepProblem:
        """Create the FineTuneJob of a trial, or return why it is refused."""
        trial = next(each for each in request.trials if trials.get_trial_name(request.meta.name, each) == row.name)
        created = await self._run_control.create(_build_child(sweep, trial))
        if isinstance(created, Refusal):
            return self._describe_refusal(request, trial, created)
        self._store(created)
        return created

    async def patch(self, children: Mapping[str, Body], patches: Mapping[str, Body]) -> None:
        """Change the specs of FineTuneJobs."""
        for name, spec_patch in patches.items():
            self._store(await self._run_control.patch(children[name], spec_patch))

    async def _observe_row(
        self, request: SweepRequest, sweep: FineTuneSweep, row: TrialStatus, child: Body | None
    ) -> TrialStatus:
        if child is None:
            return trials.mark_deleted(row) if row.created else row
        state, result = trials.read_child(child), None
        if state.phase == trials.COMPLETE:
            stored = await self._read_owned(request, row.name)
            result = trials.read_result(stored, sweep.spec.objective.metric) if stored else None
        return trials.update_row(row, state, result)

    async def _read_owned(self, request: SweepRequest, name: str) -> Body | None:
        """Return the stored FineTuneJob of this sweep: the cache may not have it yet, and it has no results."""
        stored = await self._run_control.read(request.key.namespace, name)
        return stored if stored and is_controlled_by(stored, request.meta.uid) else None

    def _store(self, child: Body) -> None:
        """Update the cache at once, so that the next reconcile does not repeat a write."""
        self._cache.children.update(self._cache.get_owner_key(child), child)

    def _describe_refusal(self, request: SweepRequest, trial: Trial, refusal: Refusal) -> SweepProblem:
        name = trials.get_trial_name(request.meta.name, trial)
        values = f"{trial.values.describe() or 'the template'}, seed {trial.seed}"
        message = f"Trial {name} ({values}): {_TEMPLATE_PATH.sub(_TEMPLATE_PREFIX, refusal.message)}"
        may_pass = (
            refusal.kind is RefusalKind.NOT_ALLOWED
            or refusal.status == _FORBIDDEN
            or (refusal.kind is RefusalKind.NAME_CONFLICT and self._is_leftover(request, name))
        )
        return SweepProblem(_REASONS[refusal.kind], message, is_permanent=not may_pass)

    def _is_leftover(self, request: SweepRequest, name: str) -> bool:
        """Return whether a FineTuneJob belongs to a deleted FineTuneSweep of the same name, so that it is deleted
        soon."""
        children = self._cache.children.list_by_key(request.key)
        return any(get_name(child) == name and not is_controlled_by(child, request.meta.uid) for child in children)


def _build_child(sweep: FineTuneSweep, trial: Trial) -> Body:
    halving = sweep.spec.halving
    return build_trial(sweep, trial, min(halving.at_steps) if halving else None)
