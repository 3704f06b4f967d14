"""The command line: `run` in a pod or by hand, `plan` before it, `generate` after it. Owns signals and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from types import FrameType

    from finetune_trainer.contract import Outcome
    from finetune_trainer.telemetry.termination_message import Known

# Nothing of ours is imported up here: signals are handled from the first moment on, and --help answers at once.

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
_STOPPED = 143
_BUGS = "finetune_trainer.bugs"


class Stopped(BaseException):
    """SIGTERM or SIGINT came. No `Exception`: no library may take it for a failure of its own."""


def main() -> NoReturn:
    """Run the command and end the process, also while threads are still downloading."""
    status = _STOPPED
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
        status = _command(sys.argv[1:])
    except Stopped:
        pass  # before or after the part that writes an outcome
    except SystemExit as error:  # argparse has said why
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # once is enough; the rest is quick
    raise Stopped(signal.Signals(number).name)


def _command(arguments: list[str]) -> int:
    from finetune_trainer.cli.app import parser

    parsed = parser().parse_args(arguments)
    _log_to(sys.stdout if parsed.command == "run" else sys.stderr)  # the others' stdout is for answers
    if parsed.command == "run":
        return _run(parsed)
    return _ask(lambda: _plan(parsed) if parsed.command == "plan" else _answer(parsed))


def _run(parsed: argparse.Namespace) -> int:
    """Train; whatever happens becomes an outcome."""
    from finetune_trainer.distributed import topology
    from finetune_trainer.telemetry import termination_message
    from finetune_trainer.telemetry.progress import ProgressReporter

    topology.die_with_launcher()
    known = termination_message.Known(ProgressReporter())
    ended = known.complete(_attempt(lambda: _train(parsed, known)))
    termination_message.write(ended)
    print(f"{_worker()}{ended.reason}: {ended.message}")
    if parsed.manifest is None and topology.size() == 1:
        print(termination_message.to_json(ended))
    return ended.reason.exit_code


def _worker() -> str:
    from finetune_trainer.distributed import topology

    return f"worker {topology.rank()}: " if topology.size() > 1 else ""


def _train(parsed: argparse.Namespace, known: Known) -> Outcome:
    from finetune_trainer.cli import app, launcher
    from finetune_trainer.config import loader
    from finetune_trainer.distributed import topology
    from finetune_trainer.pipeline import run
    from finetune_trainer.telemetry import http_server

    launches = topology.size() == 1 and topology.asked().workers > 1
    if parsed.manifest is None and topology.is_first() and not launches:
        http_server.start(known.progress)
    config = loader.load(parsed.manifest) if parsed.manifest else loader.from_environment()
    scratch = app.scratch(parsed)
    if launches:
        return run(config, scratch, known, lambda *_: launcher.launch(scratch, known, sys.argv[1:]))
    return run(config, scratch, known)


def _ask(work: Callable[[], Outcome]) -> int:
    """What was asked for alone goes to stdout."""
    ended = _attempt(work)
    if ended.reason.exit_code != 0:
        print(f"{ended.reason}: {ended.message}", file=sys.stderr)
    return ended.reason.exit_code


def _plan(parsed: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app
    from finetune_trainer.config import loader
    from finetune_trainer.contract import Reason
    from finetune_trainer.planning import plan, plan_text
    from finetune_trainer.telemetry import termination_message

    config = loader.load(parsed.manifest)
    found = plan.plan(config, app.scratch(parsed), loader.workers(parsed.manifest))
    print(found.model_dump_json(by_alias=True, indent=2) if parsed.json else plan_text.to_text(found))
    return termination_message.make(Reason.COMPLETED, "planned")


def _answer(parsed: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app, generate
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    answers = generate.answer(app.question(parsed), app.scratch(parsed))
    separator = "\n" if parsed.json else "\n\n"
    print(separator.join(each.to_json() if parsed.json else each.to_text() for each in answers))
    return termination_message.make(Reason.COMPLETED, f"{len(answers)} prompts answered")


def _attempt(work: Callable[[], Outcome]) -> Outcome:
    """The one place where an exception of any kind gets a reason. Only a bug shows its traceback."""
    from finetune_trainer.contract import Reason
    from finetune_trainer.errors import TrainerError
    from finetune_trainer.telemetry import termination_message

    try:
        return work()
    except TrainerError as error:
        return termination_message.make(error.reason, error.message)
    except Stopped as error:
        return termination_message.make(
            Reason.PREEMPTED, f"told to stop by {error}; the same run again goes on from its newest checkpoint"
        )
    except MemoryError:
        return termination_message.make(Reason.OUT_OF_MEMORY, "the host's memory is too small; raise compute.resources")
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = error.filename or "scratch"
            return termination_message.make(Reason.DISK_FULL, f"{where}: no space is left; enlarge compute.scratch")
        logging.getLogger(_BUGS).exception("This is a bug. Please report it with what follows.")
        return termination_message.make(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def _log_to(stream: TextIO) -> None:
    """Plain lines with the time; only bugs go to stderr, with their traceback. One worker of each node says it all."""
    from finetune_trainer.distributed import topology
    from finetune_trainer.telemetry.run_log import PlainFormatter

    lines, traces = logging.StreamHandler(stream), logging.StreamHandler(sys.stderr)
    lines.setFormatter(PlainFormatter(f"%(asctime)s {_worker()}%(message)s", "%H:%M:%S"))
    traces.setFormatter(PlainFormatter())
    logging.basicConfig(handlers=[lines], level=logging.WARNING)
    logging.getLogger("finetune_trainer").setLevel(logging.INFO if topology.leads_node() else logging.WARNING)
    bugs = logging.getLogger(_BUGS)
    bugs.addHandler(traces)
    bugs.propagate = False


if __name__ == "__main__":
    main()
