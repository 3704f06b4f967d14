"""Tests of the termination message: its reason, its length, and that it has no control characters."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from finetune_trainer import __main__ as command
from finetune_trainer.contract import OUTCOME_MAX_BYTES, DatasetReport, Outcome, Reason, Result
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry import run_log, termination_message
from finetune_trainer.telemetry.progress import ProgressReporter


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainerError(Reason.DATASET_EMPTY, "none"), Reason.DATASET_EMPTY),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device", "/scratch/x"), Reason.DISK_FULL),
        (OSError(errno.EACCES, "no"), Reason.INTERNAL_ERROR),
        (command.StopSignalReceived("SIGTERM"), Reason.PREEMPTED),
        (KeyError("x"), Reason.INTERNAL_ERROR),
    ],
)
def test_attempt_exception_has_reason(error: BaseException, reason: Reason) -> None:
    def work() -> Outcome:
        raise error

    assert command._run_to_outcome(work).reason is reason


def test_outcome_has_log_of_failed_attempt() -> None:
    recorder = termination_message.OutcomeRecorder(ProgressReporter())
    recorder.record_log_uri("s3://b/k/" + "l" * 1000)
    outcome = recorder.complete(termination_message.build_outcome(Reason.DATA_INVALID, "row " * 2000))
    assert Outcome.model_validate_json(termination_message.to_json(outcome)).log_uri == "s3://b/k/" + "l" * 1000


class TestOutcome:
    """It fits into a termination message."""

    @pytest.mark.parametrize("character", ["x", "é", "漢", "😀", '"', "\\", "\n", "\x01", "\ud800"])
    def test_outcome_long_message_is_shortened(self, character: str) -> None:
        outcome = termination_message.build_outcome(Reason.INTERNAL_ERROR, "what went wrong: " + character * 10_000)
        text = termination_message.to_json(outcome)
        assert len(text.encode()) <= OUTCOME_MAX_BYTES
        read = Outcome.model_validate_json(text)
        assert read.message.startswith("what went wrong: ")
        assert read.message.endswith("…")

    def test_outcome_control_characters_are_escaped(self) -> None:
        hostile = "row 1: \x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\x00,\n\tthe rest"
        outcome = termination_message.build_outcome(Reason.DATA_INVALID, hostile)
        later = termination_message.OutcomeRecorder(ProgressReporter()).complete(
            Outcome(reason=Reason.COMPLETED, message=hostile)
        )
        for message in (outcome.message, later.message):
            assert message.startswith("row 1: [U+001B][2J[U+001B]]0;owned[U+0007]")
            assert message.endswith(",\n\tthe rest")
            assert [character for character in message if not character.isprintable()] == ["\n", "\t"]

    def test_outcome_largest_fields_fit_termination_message(self) -> None:
        report = DatasetReport(
            rows=1,
            kept=1,
            rejected={"r" * 60 + str(n): 10**9 for n in range(16)},
            tokens=1,
            supervised_tokens=1,
            digest="d" * 80,
        )
        metrics = {"m" * 60 + str(n): 0.123456789 for n in range(32)}
        result = Result(
            adapter_uri="s" * 1024,
            report_uri="s" * 1036,
            merged_uri="s" * 1031,
            digest="d" * 80,
            model_revision="r" * 255,
            metrics=metrics,
        )
        outcome = termination_message.build_outcome(Reason.COMPLETED, "漢" * 5000).model_copy(
            update={"dataset": report, "result": result, "log_uri": "s" * 1032}
        )
        text = termination_message.OutcomeRecorder(ProgressReporter()).complete(outcome)
        read = Outcome.model_validate_json(termination_message.to_json(text))
        assert len(termination_message.to_json(text).encode()) <= OUTCOME_MAX_BYTES
        assert read.result
        assert (read.result.adapter_uri, read.result.merged_uri) == (result.adapter_uri, result.merged_uri)


def test_run_log_control_characters_are_escaped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "finetune_trainer")
    with run_log.capture_log(tmp_path) as kept:
        logging.getLogger("finetune_trainer.data").info("key %s\n\tfine", "\x1b[2J\u202e.jsonl")
        kept.save(tmp_path)
    assert (tmp_path / run_log.LOG_NAME).read_text().endswith(" key [U+001B][2J[U+202E].jsonl\n\tfine\n")
