"""Builder of the task that compares the inputs of a FineTuneSchedule's next run with those of its last complete one."""

from __future__ import annotations

from finetune_operator.api import FineTuneJob
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneSchedule, ScheduledRun
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.resources.task_job import Task, TaskKind, get_output_uri, get_task_storage
from finetune_operator.settings import Settings
from finetune_trainer.contract import CheckInputsTask, DataSource, TaskConfig


def build_inputs_task(
    schedule: FineTuneSchedule, next_run: FineTuneJob, last: ScheduledRun, identity: str, settings: Settings
) -> Task:
    """Return the task that lists the inputs of `next_run`. Checks of the same `identity` are one Job."""
    spec = next_run.spec
    check = CheckInputsTask(
        model_uri=spec.model.uri,
        model_revision=spec.model.revision,
        sources=_list_sources(next_run),
        output_uri=get_output_uri(next_run),
        result_uri=last.adapter_uri,
        result_digest=last.digest,
    )
    return Task(
        kind=TaskKind.CHECK_INPUTS,
        config=TaskConfig(storage=get_task_storage(next_run, settings), check_inputs=check),
        owner_name=schedule.metadata.name,
        owner_reference=build_owner_reference(schedule.metadata, SCHEDULE_KIND),
        identity=f"{schedule.metadata.uid}/{identity}",
    )


def _list_sources(finetunejob: FineTuneJob) -> list[DataSource]:
    """Return where the rows for training, validation and test are."""
    dataset, evaluation = finetunejob.spec.dataset, finetunejob.spec.evaluation
    validation = dataset.validation.sources if dataset.validation else None
    test = evaluation.test.sources if evaluation.test else []
    return [*dataset.sources, *(validation or []), *test]
