"""The stage that publishes GGUF files. It does not fail the run, since the adapter is published before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.context import RunContext
from finetune_trainer.contract import GgufType, Outcome, Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import BaseModelSource
from finetune_trainer.publishing.gguf_converter import Converter, find_converters
from finetune_trainer.publishing.gguf_files import GgufSources, create_gguf_files
from finetune_trainer.publishing.gguf_output import GgufOutput
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.publishing.published_result import PublishedResult
from finetune_trainer.records.gguf import can_convert_adapter, list_gguf_names
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.failures import describe_failure, is_bug

log = logging.getLogger(__name__)
_BUG_LOGGER = "finetune_trainer.bugs"

_RETRY_HINT = "a run with the same config and output creates them from the result, without training"
_PENDING_MESSAGE = "the GGUF files are not published yet; " + _RETRY_HINT


def add_gguf_files(
    outcome: Outcome, output: OutputPrefix, context: RunContext, fetch_sources: Callable[[], GgufSources]
) -> Outcome:
    """Publish the GGUF files of a published result, if `output.gguf` requests them and they are missing. Returns the
    outcome, extended by how that ended.

    A failure of any kind only extends the message. The outcome is also written before the conversion: a process that is
    killed for lack of memory cannot write it afterwards.
    """
    gguf_type, result = context.config.output.gguf, outcome.result
    if gguf_type == "none" or result is None or result.gguf_uri:
        return outcome
    gguf_output = output.gguf_output(result.digest)
    pending_outcome = context.recorder.complete(_append_message(outcome, _PENDING_MESSAGE))
    termination_message.write_outcome(pending_outcome)
    context.recorder.record_published(pending_outcome)
    try:
        missing = _publish(gguf_output, gguf_type, context, fetch_sources)
    except Exception as error:  # the result stays published whatever this was
        if is_bug(error):
            logging.getLogger(_BUG_LOGGER).exception("This is a bug. Please report it with the traceback below.")
        cause = describe_failure(error).message
        log.warning("the GGUF files are not published: %s", cause)
        return _append_message(outcome, f"the GGUF files are not published: {cause}; {_RETRY_HINT}")
    final_outcome = outcome.model_copy(update={"result": result.model_copy(update={"gguf_uri": gguf_output.uri})})
    return _append_message(
        final_outcome, f"the GGUF files are published at {gguf_output.uri}{describe_missing(missing)}"
    )


def _publish(
    gguf_output: GgufOutput, gguf_type: GgufType, context: RunContext, fetch_sources: Callable[[], GgufSources]
) -> dict[str, str]:
    """Publish the files. Returns why requested files are missing, by their names."""
    if gguf_output.is_complete(gguf_type, list_gguf_names(context.config)):  # another attempt was faster
        return {}
    gguf_output.check_vacant()
    converter = Converter(find_converters(), context.progress.heartbeat)
    with gguf_output.attempts.count():
        context.progress.update(stage=Stage.EXPORTING)
        folder = context.work_dir / "gguf"
        missing = create_gguf_files(fetch_sources(), gguf_type, converter, folder)
        context.progress.update(stage=Stage.UPLOADING)
        gguf_output.publish(folder, gguf_type, missing)
    return missing


def describe_missing(missing: dict[str, str]) -> str:
    """Return why files are missing, as the rest of a sentence. It is empty if there are all."""
    return "".join(f", without {name}: {reason}" for name, reason in missing.items())


def collect_trained_sources(
    outcome: Outcome, output: OutputPrefix, model_dir: Path, adapter_dir: Path, context: RunContext
) -> GgufSources:
    """Return the folders of a run that has just published its adapter."""
    merged_dir = _find_merged(outcome, output, context)
    return GgufSources(adapter_dir if can_convert_adapter(context.config) else None, model_dir, merged_dir)


def fetch_published_sources(
    outcome: Outcome, published: PublishedResult, output: OutputPrefix, model: BaseModelSource, context: RunContext
) -> GgufSources:
    """Download a published result, and the settings of its base model."""
    adapter_dir = output.download_result(published, context.work_dir / "published")
    base_dir = model.fetch_settings(context.work_dir / "base", lambda _: None).folder
    merged_dir = _find_merged(outcome, output, context)
    return GgufSources(adapter_dir if can_convert_adapter(context.config) else None, base_dir, merged_dir)


def _find_merged(outcome: Outcome, output: OutputPrefix, context: RunContext) -> Path | None:
    """Return the folder of the merged model, which is downloaded unless this process has made it."""
    if not context.config.output.merged:
        return None
    if outcome.result is None or outcome.result.merged_uri is None:
        raise TrainerError(Reason.MODEL_NOT_FOUND, "they need the merged model, which is not published")
    folder = context.work_dir / "merged"
    return folder if folder.is_dir() else output.download_merged(folder)


def _append_message(outcome: Outcome, addition: str) -> Outcome:
    return outcome.model_copy(update={"message": f"{outcome.message}; {addition}"})
