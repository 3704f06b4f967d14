"""Builder of the FineTuneJobs of a FineTuneSchedule."""

from __future__ import annotations

from finetune_operator.api import FineTuneJob
from finetune_operator.api.labels import SCHEDULED_TIME_ANNOTATION
from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneSchedule, ScheduledRun
from finetune_operator.resources.child import Owner, build_child, parse_child


def build_scheduled_run(schedule: FineTuneSchedule, run: ScheduledRun) -> Body:
    """Return the FineTuneJob of a run: the template, compared with the champion of `schedule.status`."""
    template = schedule.spec.template
    owner = Owner(SCHEDULE_KIND, schedule.metadata, template.metadata)
    return build_child(owner, run.name, template.spec.to_json(), {SCHEDULED_TIME_ANNOTATION: run.scheduled_time})


def add_champion(run: ScheduledRun, schedule: FineTuneSchedule) -> ScheduledRun:
    """Return a new run with the champion that it is compared with."""
    return run


def build_template_run(schedule: FineTuneSchedule) -> FineTuneJob:
    """Return the FineTuneJob of the template with the name of the schedule, for task pods with its access to S3."""
    owner = Owner(SCHEDULE_KIND, schedule.metadata, schedule.spec.template.metadata)
    return parse_child(build_child(owner, schedule.metadata.name, schedule.spec.template.spec.to_json()))
