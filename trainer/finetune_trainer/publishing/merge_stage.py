"""The merged model, once its adapter is published. Whatever goes wrong with it, the adapter is there and the run ends
well."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_trainer.contract import Outcome, Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.library_errors import memory_errors
from finetune_trainer.publishing.publish import Output
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.termination_message import Known

if TYPE_CHECKING:
    from finetune_trainer.publishing.merge import Merged
    from finetune_trainer.publishing.merged_output import MergedOutput

log = logging.getLogger(__name__)
_BUGS = "finetune_trainer.bugs"

_AGAIN = "a run of the same config and output makes it from the adapter, without training"
_NOT_YET = "the merged model is not published yet; " + _AGAIN


def add(ended: Outcome, output: Output, known: Known, make: Callable[[], Merged]) -> Outcome:
    """`ended`, of a run whose adapter is published, with what became of the merged model that `make` writes.

    The outcome is also written before the work begins: a process that is killed for want of memory says nothing more.
    """
    if ended.result is None or ended.result.merged_uri:
        return ended
    place = output.merged(ended.result.digest)
    termination_message.write(known.complete(_with_message(ended, _NOT_YET)))
    try:
        _publish(place, known, make)
    except TrainerError as error:
        return _without(ended, error.message)
    except Exception as error:  # the adapter stays published, whatever this was
        logging.getLogger(_BUGS).exception("This is a bug. Please report it with what follows.")
        return _without(ended, f"{type(error).__name__}: {error}")
    published = ended.model_copy(update={"result": ended.result.model_copy(update={"merged_uri": place.uri})})
    return _with_message(published, f"the merged model is published at {place.uri}")


def _publish(place: MergedOutput, known: Known, make: Callable[[], Merged]) -> None:
    if place.is_whole():  # another attempt was faster
        return
    place.check_foreign()
    with place.counted(), _disk_errors(), memory_errors("merge the adapter into the base model; give it more memory"):
        known.progress.update(stage=Stage.EXPORTING)
        merged = make()
        known.progress.update(stage=Stage.UPLOADING)
        place.publish(merged.folder, merged.precision, merged.losses)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turns a want of disk space into `DISK_FULL`."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = f"{error.filename or 'scratch'}: no space is left; enlarge compute.scratch"
        raise TrainerError(Reason.DISK_FULL, message) from error


def _without(ended: Outcome, why: str) -> Outcome:
    log.warning("the merged model is not published: %s", why)
    return _with_message(ended, f"the merged model is not published: {why}; {_AGAIN}")


def _with_message(ended: Outcome, more: str) -> Outcome:
    return ended.model_copy(update={"message": f"{ended.message}; {more}"})
