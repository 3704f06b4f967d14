"""Builder of the FineTuneJobs of a FineTuneSchedule."""

from __future__ import annotations

from finetune_operator.api.labels import SCHEDULED_TIME_ANNOTATION
from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneSchedule, ScheduledRun
from finetune_operator.resources.child import Owner, build_child


def build_scheduled_run(schedule: FineTuneSchedule, run: ScheduledRun) -> Body:
    """Return the FineTuneJob of a run: the template, compared with the champion of `schedule.status`."""
    template = schedule.spec.template
    owner = Owner(SCHEDULE_KIND, schedule.metadata, template.metadata)
    return build_child(owner, run.name, template.spec.to_json(), {SCHEDULED_TIME_ANNOTATION: run.scheduled_time})
