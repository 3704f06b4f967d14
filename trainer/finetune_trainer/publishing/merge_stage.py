"""The stage that publishes the merged model. It does not fail the run, since the adapter is published before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_trainer.context import RunContext
from finetune_trainer.contract import Outcome, Stage
from finetune_trainer.modeling.library_errors import translate_memory_errors
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.failures import describe_failure, is_bug

if TYPE_CHECKING:
    from finetune_trainer.publishing.merge import MergedModel
    from finetune_trainer.publishing.merged_output import MergedOutput

log = logging.getLogger(__name__)
_BUG_LOGGER = "finetune_trainer.bugs"

_RETRY_HINT = "a run with the same config and output creates it from the adapter, without training"
_PENDING_MESSAGE = "the merged model is not published yet; " + _RETRY_HINT


def add_merged_model(
    adapter_outcome: Outcome, output: OutputPrefix, context: RunContext, merge_model: Callable[[], MergedModel]
) -> Outcome:
    """Publish the merged model of a published adapter. Returns the adapter's outcome, extended by how that ended.

    `merge_model` writes the merged model to the work folder. A failure of any kind only extends the message. The
    outcome is also written before the merge: a process that is killed for lack of memory cannot write it afterwards.
    """
    if adapter_outcome.result is None or adapter_outcome.result.merged_uri:
        return adapter_outcome
    merged_output = output.merged_output(adapter_outcome.result.digest)
    pending_outcome = context.recorder.complete(_append_message(adapter_outcome, _PENDING_MESSAGE))
    termination_message.write_outcome(pending_outcome)
    context.recorder.record_published(pending_outcome)
    try:
        _publish_merged_model(merged_output, context, merge_model)
    except Exception as error:  # the adapter stays published whatever this was
        if is_bug(error):
            logging.getLogger(_BUG_LOGGER).exception("This is a bug. Please report it with the traceback below.")
        return _report_not_published(adapter_outcome, describe_failure(error).message)
    final_outcome = adapter_outcome.model_copy(
        update={"result": adapter_outcome.result.model_copy(update={"merged_uri": merged_output.uri})}
    )
    return _append_message(final_outcome, f"the merged model is published at {merged_output.uri}")


def _publish_merged_model(
    merged_output: MergedOutput, context: RunContext, merge_model: Callable[[], MergedModel]
) -> None:
    if merged_output.is_complete():  # another attempt was faster
        return
    merged_output.check_foreign_files()
    with (
        merged_output.attempts.count(),
        translate_memory_errors("merge the adapter into the base model; give it more memory"),
    ):
        context.progress.update(stage=Stage.EXPORTING)
        merged = merge_model()
        context.progress.update(stage=Stage.UPLOADING)
        merged_output.publish(merged.folder, merged.precision, merged.losses)


def _report_not_published(adapter_outcome: Outcome, cause: str) -> Outcome:
    log.warning("the merged model is not published: %s", cause)
    return _append_message(adapter_outcome, f"the merged model is not published: {cause}; {_RETRY_HINT}")


def _append_message(adapter_outcome: Outcome, addition: str) -> Outcome:
    return adapter_outcome.model_copy(update={"message": f"{adapter_outcome.message}; {addition}"})
