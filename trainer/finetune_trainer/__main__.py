"""Entry point of `finetune-trainer`: handles signals, turns every ending into an outcome and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, NoReturn, TextIO, TypeVar

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from types import FrameType

    from finetune_trainer.contract import Outcome, TaskOutcome
    from finetune_trainer.telemetry.termination_message import OutcomeRecorder

    _OutcomeT = TypeVar("_OutcomeT", Outcome, TaskOutcome)

# Modules of this package are imported inside functions, so that signals are handled from the start and --help is fast.

_QUIET_ENV = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
_STOPPED_EXIT_CODE = 143
_BUG_LOGGER = "finetune_trainer.bugs"
_RESUME_HINT = "; the next attempt resumes from the latest checkpoint, if there is one"


class StopSignalReceived(BaseException):
    """SIGTERM or SIGINT was received. Not an `Exception`, so that no library handles it as an error of its own."""


def main() -> NoReturn:
    """Run the command and end the process, even while threads are still downloading."""
    status = _STOPPED_EXIT_CODE
    try:
        for stop_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop_signal, _handle_stop_signal)
        os.environ.update({key: value for key, value in _QUIET_ENV.items() if key not in os.environ})
        status = _run_command(sys.argv[1:])
    except StopSignalReceived:
        pass  # outside of the part that writes an outcome
    except SystemExit as error:  # argparse has printed the reason
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _handle_stop_signal(signal_number: int, frame: FrameType | None) -> None:
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop_signal, signal.SIG_IGN)  # one signal is enough, and the process ends soon
    raise StopSignalReceived(signal.Signals(signal_number).name)


def _run_command(argv: list[str]) -> int:
    from finetune_trainer.modeling.import_guard import pause_garbage_collector

    with pause_garbage_collector():
        from finetune_trainer.cli.app import build_parser

    args = build_parser().parse_args(argv)
    is_pod_command = args.command in ("run", "task")
    _configure_logging(sys.stdout if is_pod_command else sys.stderr)  # stdout of the other commands is for results
    if args.command == "run":
        return _run_training(args)
    if args.command == "cache" and args.action == "fill":
        return _fill_cache()
    if args.command == "task":
        return _run_task()
    queries = {
        "plan": _print_plan, "generate": _print_completions, "clean": _print_deletions, "cache": _print_cache,
        "sync-alias": _sync_alias, "chat-server": _serve_chat, "export": _export_result,
        "grade": _print_grades,
    }  # fmt: skip
    return _run_query(lambda: queries[args.command](args))


def _fill_cache() -> int:
    """Fill the model cache. A failure never ends the pod, whose trainer then downloads the model. Returns the exit
    code."""
    from finetune_trainer.cli import model_cache
    from finetune_trainer.contract import ExitCode

    outcome = _run_to_outcome(model_cache.fill_for_pod)
    is_stopped = outcome.reason.exit_code is ExitCode.PREEMPTED
    if outcome.reason.exit_code is not ExitCode.OK and not is_stopped:
        _run_to_outcome(lambda: model_cache.report_miss(outcome))
        outcome = outcome.model_copy(update={"message": f"the model cache is not used: {outcome.message}"})
    print(f"{outcome.reason}: {outcome.message}", file=sys.stderr)
    return ExitCode.PREEMPTED if is_stopped else ExitCode.OK


def _run_training(args: argparse.Namespace) -> int:
    """Run a training; every ending becomes an outcome. Returns the exit code."""
    from finetune_trainer.distributed import topology
    from finetune_trainer.telemetry import termination_message
    from finetune_trainer.telemetry.progress import ProgressReporter

    topology.set_parent_death_signal()
    recorder = termination_message.OutcomeRecorder(ProgressReporter())
    final_outcome = recorder.complete(_run_to_outcome(lambda: _train(args, recorder), _RESUME_HINT))
    termination_message.write_outcome(final_outcome)
    if final_outcome.log_uri:
        print(f"{_rank_prefix()}log: {final_outcome.log_uri}")
    print(f"{_rank_prefix()}{final_outcome.reason}: {final_outcome.message}")
    if args.manifest is None and topology.world_size() == 1:
        print(termination_message.to_json(final_outcome))
    return final_outcome.reason.exit_code


def _train(args: argparse.Namespace, recorder: OutcomeRecorder) -> Outcome:
    from finetune_trainer.modeling.import_guard import pause_garbage_collector

    with pause_garbage_collector():
        from finetune_trainer.cli.run import run_command

    return run_command(args, recorder)


def _run_task() -> int:
    """Run the task of a task pod; every ending becomes an outcome. Returns the exit code."""
    from finetune_trainer.contract import Outcome
    from finetune_trainer.tasks import runner

    ending = _run_to_outcome(runner.run_task)
    outcome = runner.describe_failure(ending) if isinstance(ending, Outcome) else ending
    runner.write_outcome(outcome)
    print(f"{outcome.reason}: {outcome.message}")
    return outcome.reason.exit_code


def _rank_prefix() -> str:
    from finetune_trainer.distributed import topology

    return f"rank {topology.rank()}: " if topology.world_size() > 1 else ""


def _run_query(action: Callable[[], Outcome]) -> int:
    """Run a command that prints its result to stdout; print a failure to stderr. Returns the exit code."""
    final_outcome = _run_to_outcome(action)
    if final_outcome.reason.exit_code != 0:
        print(f"{final_outcome.reason}: {final_outcome.message}", file=sys.stderr)
    return final_outcome.reason.exit_code


def _print_plan(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli.series import format_series_plan
    from finetune_trainer.config import loader
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    owner = loader.read_owner(args.manifest)
    if owner is None:
        return _print_run_plan(args)
    print(format_series_plan(args, *owner))
    return termination_message.build_outcome(Reason.COMPLETED, "planned")


def _print_run_plan(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app
    from finetune_trainer.config import loader
    from finetune_trainer.contract import Reason
    from finetune_trainer.planning import plan, plan_text, shown_rows
    from finetune_trainer.telemetry import termination_message

    def format_plan(run_plan: plan.Plan) -> str:
        marks = shown_rows.TERMINAL_MARKS if sys.stdout.isatty() else shown_rows.QUOTE_MARKS
        return run_plan.model_dump_json(by_alias=True, indent=2) if args.json else plan_text.to_text(run_plan, marks)

    config = loader.load_manifest(args.manifest)
    build_plan = plan.build_checked_plan if args.check else plan.build_plan
    try:
        with redirect_stdout(sys.stderr):  # Unsloth greets on stdout, which is for the plan
            resources = plan.read_resources(args.manifest)
            run_plan = build_plan(config, app.resolve_scratch(args), resources, args.show_rows)
    except plan.CheckFailedError as error:
        print(format_plan(error.plan))
        raise
    print(format_plan(run_plan))
    return termination_message.build_outcome(Reason.COMPLETED, "planned")


def _print_completions(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app, generate
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    comparisons = generate.compare_completions(app.build_generate_request(args), app.resolve_scratch(args))
    separator = "\n" if args.json else "\n\n"
    print(separator.join(comparison.to_json() if args.json else comparison.to_text() for comparison in comparisons))
    return termination_message.build_outcome(Reason.COMPLETED, f"{len(comparisons)} prompts completed")


def _serve_chat(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app, chat_server
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    chat_server.serve_chat(app.build_generate_request(args), app.resolve_scratch(args), args.port)
    return termination_message.build_outcome(Reason.COMPLETED, "served")


def _export_result(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import app, export
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    print(export.export_result(app.build_export_request(args), app.resolve_scratch(args)))
    return termination_message.build_outcome(Reason.COMPLETED, "exported")


def _print_grades(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import grade
    from finetune_trainer.config import loader
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    answers, grades = grade.grade_file(loader.load_manifest(args.manifest).evaluation, args.file)
    print(grade.format_json(grades) if args.json else grade.format_grades(grades))
    return termination_message.build_outcome(Reason.COMPLETED, f"{len(answers)} answers graded")


def _print_cache(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import model_cache
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    print(model_cache.list_cache(args))
    return termination_message.build_outcome(Reason.COMPLETED, "listed")


def _print_deletions(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import clean
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    for line in clean.clean_prefix(args):
        print(line, flush=True)
    return termination_message.build_outcome(Reason.COMPLETED, "cleaned")


def _sync_alias(args: argparse.Namespace) -> Outcome:
    from finetune_trainer.cli import sync_alias
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import termination_message

    print(sync_alias.follow_alias(args))
    return termination_message.build_outcome(Reason.COMPLETED, "updated")


def _run_to_outcome(action: Callable[[], _OutcomeT], stop_hint: str = "") -> _OutcomeT | Outcome:
    """Call `action` and turn any exception into an outcome. Only a bug logs its traceback. `stop_hint` says what
    follows a stop signal."""
    from finetune_trainer.contract import Reason
    from finetune_trainer.telemetry import failures, termination_message

    try:
        return action()
    except StopSignalReceived as error:
        return termination_message.build_outcome(Reason.PREEMPTED, f"stopped by {error}{stop_hint}")
    except Exception as error:
        if failures.is_bug(error):
            logging.getLogger(_BUG_LOGGER).exception("This is a bug. Please report it with the traceback below.")
        return failures.describe_failure(error)


def _configure_logging(stream: TextIO) -> None:
    """Log to `stream`, and tracebacks of bugs to stderr. On each node only local rank 0 logs at level INFO."""
    from finetune_trainer.distributed import topology
    from finetune_trainer.telemetry.run_log import PlainFormatter

    line_handler, traceback_handler = logging.StreamHandler(stream), logging.StreamHandler(sys.stderr)
    line_handler.setFormatter(PlainFormatter(f"%(asctime)s {_rank_prefix()}%(message)s", "%H:%M:%S"))
    traceback_handler.setFormatter(PlainFormatter())
    logging.basicConfig(handlers=[line_handler], level=logging.WARNING)
    logging.getLogger("finetune_trainer").setLevel(logging.INFO if topology.is_local_rank_zero() else logging.WARNING)
    bug_logger = logging.getLogger(_BUG_LOGGER)
    bug_logger.addHandler(traceback_handler)
    bug_logger.propagate = False


if __name__ == "__main__":
    main()
