"""Whether an earlier run has trained on the validation rows of this one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.data.row_digests import compute_set_digest, iterate_digests
from finetune_trainer.evaluation.held_out import are_held_out, describe_baselines, find_validation_digest
from finetune_trainer.inputs.base_model import FetchedModel
from finetune_trainer.inputs.earlier_results import FetchedResult
from finetune_trainer.inputs.resolve import START_ADAPTER, DownloadedInputs

if TYPE_CHECKING:
    from finetune_trainer.data.row_digests import DigestTable

MODEL = FetchedModel(Path("model"), "sha256:0", [])


def make_table(*names: str) -> DigestTable:
    import numpy as np

    digests = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)


def make_result(table: DigestTable, row_scores: Path | None = None) -> FetchedResult:
    return FetchedResult("sha256:" + "a" * 64, compute_set_digest(table), row_scores)


def write_row_scores(path: Path, table: DigestTable) -> Path:
    path.write_text("".join(json.dumps({"row": row, "scores": {}}) + "\n" for row in iterate_digests(table)))
    return path


def make_inputs(results: dict[str, FetchedResult], *, starts_from_adapter: bool = False) -> DownloadedInputs:
    adapter = MODEL if starts_from_adapter else None
    return DownloadedInputs(MODEL, [], adapter=adapter, baselines={"may": MODEL}, results=results)


def test_are_held_out_same_rows_in_any_order() -> None:
    assert are_held_out(make_table("b", "a", "a"), make_result(make_table("a", "b")))
    assert not are_held_out(make_table("a", "c"), make_result(make_table("a", "b")))


def test_are_held_out_fewer_rows_need_the_rows_of_the_result(tmp_path: Path) -> None:
    earlier = make_table("a", "b", "c")
    scores = write_row_scores(tmp_path / "evaluation.jsonl", earlier)
    assert are_held_out(make_table("c", "a"), make_result(earlier, scores))
    assert not are_held_out(make_table("c", "d"), make_result(earlier, scores))
    assert not are_held_out(make_table("c", "a"), make_result(earlier))


@pytest.mark.parametrize("content", ["no json\n", '{"other": 1}\n', '{"row": 1}\n'])
def test_are_held_out_unknown_rows_of_the_result_count_as_trained_on(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text(content)
    assert not are_held_out(make_table("a"), make_result(make_table("a", "b"), path))


def test_are_held_out_result_of_an_earlier_version_is_unknown(tmp_path: Path) -> None:
    scores = write_row_scores(tmp_path / "evaluation.jsonl", make_table("a"))
    assert not are_held_out(make_table("a"), FetchedResult("sha256:0", None, scores))
    assert not are_held_out(make_table("a"), None)
    assert not are_held_out(None, make_result(make_table("a")))


def test_describe_baselines_names_the_result_and_its_rows() -> None:
    rows = make_table("a", "b")
    record = describe_baselines(rows, make_inputs({"may": make_result(rows)}))["may"]
    assert (record.digest, record.held_out) == ("sha256:" + "a" * 64, True)
    record = describe_baselines(rows, make_inputs({}))["may"]
    assert (record.digest, record.held_out) == (None, False)


def test_rows_that_the_start_adapter_may_have_seen_are_not_held_out() -> None:
    rows, other = make_table("a", "b"), make_result(make_table("c"))
    seen = make_inputs({"may": make_result(rows), START_ADAPTER: other}, starts_from_adapter=True)
    assert find_validation_digest(rows, seen) is None
    assert describe_baselines(rows, seen)["may"].held_out is False
    unseen = make_inputs({"may": make_result(rows), START_ADAPTER: make_result(rows)}, starts_from_adapter=True)
    assert find_validation_digest(rows, unseen) == compute_set_digest(rows)
    assert describe_baselines(rows, unseen)["may"].held_out is True
    assert find_validation_digest(rows, make_inputs({}, starts_from_adapter=True)) is None
    assert find_validation_digest(None, make_inputs({})) is None
