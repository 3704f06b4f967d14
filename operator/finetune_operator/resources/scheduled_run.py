"""Builder of the FineTuneJobs of a FineTuneSchedule."""

from __future__ import annotations

from finetune_operator.api import FineTuneJob
from finetune_operator.api.labels import SCHEDULED_TIME_ANNOTATION
from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import (
    CHAMPION_BASELINE,
    SCHEDULE_KIND,
    Champion,
    FineTuneSchedule,
    ScheduledRun,
)
from finetune_operator.api.spec import RunSpec
from finetune_operator.resources.child import Owner, build_child, parse_child
from finetune_trainer.contract import Baseline


def choose_opponent(schedule: FineTuneSchedule) -> Champion | None:
    """Return the champion that a run from the template of now is compared with, or None.

    A champion of another base model is none: its adapter does not fit.
    """
    champion = schedule.status.champion if schedule.status else None
    return champion if champion and champion.model_uri == schedule.spec.template.spec.model.uri else None


def add_champion(run: ScheduledRun, schedule: FineTuneSchedule) -> ScheduledRun:
    """Return a new run with the champion that it is compared with.

    Call it in the step that adds the run to the status, and store both together: the FineTuneJob is built from what is
    recorded here, so that a repeated creation builds the same one although the champion has changed since.
    """
    opponent = choose_opponent(schedule)
    if opponent is None:
        return run
    return run.model_copy(update={"champion": opponent.run, "champion_digest": opponent.digest})


def build_scheduled_run(schedule: FineTuneSchedule, run: ScheduledRun) -> Body:
    """Return the FineTuneJob of a run: the template, compared with the champion that `add_champion` has recorded.

    With `startFrom: champion` it continues the training of that champion's adapter. A run without a recorded champion,
    or with one that is no longer in `status.champions` or does not fit to the template, is the template alone.
    """
    opponent = _find_opponent(schedule, run)
    spec = schedule.spec.template.spec
    spec = _add_opponent(spec, opponent, schedule.spec.start_from == "champion") if opponent else spec
    return _build_child(schedule, run.name, spec, {SCHEDULED_TIME_ANNOTATION: run.scheduled_time})


def build_template_run(schedule: FineTuneSchedule) -> FineTuneJob:
    """Return the FineTuneJob of the template with the name of the schedule, for task pods with its access to S3."""
    return parse_child(_build_child(schedule, schedule.metadata.name, schedule.spec.template.spec, {}))


def _build_child(schedule: FineTuneSchedule, name: str, spec: RunSpec, annotations: dict[str, str]) -> Body:
    owner = Owner(SCHEDULE_KIND, schedule.metadata, schedule.spec.template.metadata)
    return build_child(owner, name, spec.to_json(), annotations)


def _find_opponent(schedule: FineTuneSchedule, run: ScheduledRun) -> Champion | None:
    known = schedule.status.champions if schedule.status else []
    # The template may have got another base model since the run was recorded.
    identity = (run.champion, run.champion_digest, schedule.spec.template.spec.model.uri)
    return next((each for each in known if (each.run, each.digest, each.model_uri) == identity), None)


def _add_opponent(spec: RunSpec, opponent: Champion, starts_from_it: bool) -> RunSpec:
    if starts_from_it:
        model = spec.model.model_copy(update={"adapter_uri": opponent.adapter_uri})
        spec = spec.model_copy(update={"model": model})
    if spec.dataset.validation is None or spec.training.method != "sft":
        return spec
    baseline = Baseline(name=CHAMPION_BASELINE, adapter_uri=opponent.adapter_uri, digest=opponent.digest)
    evaluation = spec.evaluation.model_copy(update={"baselines": [*spec.evaluation.baselines, baseline]})
    return spec.model_copy(update={"evaluation": evaluation})
