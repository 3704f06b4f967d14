"""Tests of the termination message: its reason, its length, and that it has no control characters."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer import __main__ as command
from finetune_trainer.contract import (
    OUTCOME_MAX_BYTES,
    BaselineComparison,
    DatasetReport,
    MetricChange,
    Outcome,
    Reason,
    Result,
    Verdicts,
)
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


FLOATS = st.floats(-1e9, 1e9).map(lambda value: float(f"{value:.7g}"))


def make_dataset_report(reasons: int) -> DatasetReport:
    rejected = {"r" * 60 + str(n): 10**9 for n in range(reasons)}
    return DatasetReport(rows=1, kept=1, rejected=rejected, tokens=1, supervised_tokens=1, digest="d" * 80)


def make_comparison(name: str, values: list[float]) -> BaselineComparison:
    baseline, value, change, low, high, _ = values
    changes = [
        MetricChange(
            metric=metric,
            higher_is_better=True,
            baseline=baseline,
            value=value,
            change=change,
            low=low,
            high=high,
            samples=10**6,
        )
        for metric in ("evalLoss", "accuracy", "macroF1", "rouge1", "rouge2", "rougeL", "exactMatch", "perplexity")
    ]
    return BaselineComparison(name=name, digest="sha256:" + "e" * 64, held_out=True, changes=changes)


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
        report = make_dataset_report(16)
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

    @settings(max_examples=50)
    @given(
        st.text(max_size=2048),
        st.integers(0, 16),
        st.integers(0, 32),
        st.lists(st.sampled_from(["may", "champion", "june", "july"]), max_size=4, unique=True),
        st.lists(FLOATS, min_size=6, max_size=6),
        st.sampled_from([20, 1031]),
    )
    def test_outcome_of_any_size_keeps_what_a_promotion_depends_on(
        self, message: str, rejected: int, metrics: int, names: list[str], values: list[float], uri_length: int
    ) -> None:
        result = Result(
            adapter_uri="s" * min(uri_length, 1024),
            report_uri="s" * uri_length,
            merged_uri="s" * uri_length,
            digest="sha256:" + "d" * 64,
            model_revision="r" * 255,
            metrics={f"m{number}": values[number % 6] for number in range(metrics)},
            verdicts=Verdicts(overfitting="overfitting", forgetting="forgetting", bias="unknown"),
            baselines=[make_comparison(name, values) for name in names] or None,
        )
        whole = termination_message.build_outcome(Reason.COMPLETED, message).model_copy(
            update={"result": result, "dataset": make_dataset_report(rejected), "log_uri": "s" * uri_length}
        )
        whole = termination_message.OutcomeRecorder(ProgressReporter()).complete(whole)
        text = termination_message.to_json(whole)
        assert len(text.encode()) <= OUTCOME_MAX_BYTES
        read = Outcome.model_validate_json(text)
        assert read.result
        assert (read.result.adapter_uri, read.result.digest) == (result.adapter_uri, result.digest)
        assert read.result.verdicts == result.verdicts
        champions = [baseline for baseline in result.baselines or () if baseline.name == "champion"]
        assert [baseline for baseline in read.result.baselines or () if baseline.name == "champion"] == champions
        if read.result.metrics != result.metrics:
            assert (read.progress, read.dataset, read.result.baselines or []) == (None, None, champions)
            assert len(read.message.encode()) <= 256
        if read.dataset is None:
            assert (read.progress, read.result.baselines or []) == (None, champions)

    def test_outcome_with_many_baselines_keeps_the_rows_and_the_log(self) -> None:
        champion, other = (make_comparison(name, [-0.1234567] * 6) for name in ("champion", "june"))
        result = Result(adapter_uri="s3://b/run", digest="d", model_revision="r", baselines=[champion, other])
        outcome = termination_message.build_outcome(Reason.COMPLETED, "m").model_copy(
            update={"result": result, "dataset": make_dataset_report(16), "log_uri": "s3://b/run/run.log"}
        )
        read = Outcome.model_validate_json(termination_message.to_json(outcome))
        assert read.result
        assert read.result.baselines == [champion]
        assert (read.dataset, read.log_uri) == (outcome.dataset, "s3://b/run/run.log")

    def test_outcome_keeps_the_metrics_of_the_validation_data_longest(self) -> None:
        measured = {"evalLoss": 1.25, "crossValidationLoss": 1.5, "evalRewardAccuracy": 0.75, "rougeL": 0.5}
        metrics = {**measured, "baseRougeL": 0.25, **{"t" * 60 + str(n): 0.123456789 for n in range(27)}}
        uris = {"adapter_uri": "s" * 1000, "report_uri": "s" * 1000}
        result = Result(**uris, digest="d", model_revision="r" * 255, metrics=metrics)
        outcome = termination_message.build_outcome(Reason.COMPLETED, "m").model_copy(update={"result": result})
        read = Outcome.model_validate_json(termination_message.to_json(outcome))
        assert read.result
        assert read.result.metrics == measured


def test_run_log_control_characters_are_escaped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "finetune_trainer")
    with run_log.capture_log(tmp_path) as kept:
        logging.getLogger("finetune_trainer.data").info("key %s\n\tfine", "\x1b[2J\u202e.jsonl")
        kept.save(tmp_path)
    assert (tmp_path / run_log.LOG_NAME).read_text().endswith(" key [U+001B][2J[U+202E].jsonl\n\tfine\n")
