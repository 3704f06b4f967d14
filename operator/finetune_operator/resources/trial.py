"""Builder of the FineTuneJobs of a FineTuneSweep."""

from __future__ import annotations

from finetune_operator.api.objects import Body
from finetune_operator.api.sweep import SWEEP_KIND, FineTuneSweep
from finetune_operator.resources.child import Owner, build_child
from finetune_operator.status.sweeps.trials import get_trial_name
from finetune_trainer.contract import Trial, apply_trial


def build_trial(sweep: FineTuneSweep, trial: Trial, suspend_at_step: int | None = None) -> Body:
    """Return the FineTuneJob of a trial: the template with the trial's values, its seed and the first step of
    halving."""
    template = sweep.spec.template
    owner = Owner(SWEEP_KIND, sweep.metadata, template.metadata)
    spec = apply_trial(template.spec.to_json(), trial)
    step = {} if suspend_at_step is None else {"suspendAtStep": suspend_at_step}
    return build_child(owner, get_trial_name(sweep.metadata.name, trial), {**spec, **step})
