"""Tests of the number of positions of a model, and of rows that exceed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prompt_completion
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, import_libraries, tokenizer, write_rows

from finetune_trainer.contract import Reason
from finetune_trainer.data.preparation import DataFiles, PreparedData, prepare_dataset
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.positions import get_max_positions, limit_max_length
from finetune_trainer.training.methods import get_method

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
OTHERS = {"original_max_position_embeddings": 1000}
MODELS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "rotary": ("llama", {"max_position_embeddings": 4000}, 4000),
    "yarn": ("llama", {"max_position_embeddings": 4000, "rope_parameters": YARN}, 4000),
    "yarn on top": ("qwen3", {"max_position_embeddings": 1000, "rope_parameters": YARN}, 4000),
    "linear": (
        "llama",
        {"max_position_embeddings": 1000, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        2000,
    ),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 1000, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        2000,
    ),
    "llama3": ("llama", {"max_position_embeddings": 8000, "rope_parameters": {**LLAMA3, **OTHERS}}, 8000),
    "longrope": ("phi3", {"max_position_embeddings": 4000, "rope_parameters": {**LONG, **OTHERS}}, 4000),
    "gemma3": (
        "gemma3_text",
        {
            "max_position_embeddings": 4000,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {"rope_type": "linear", "factor": 8.0},
            },
        },
        4000,
    ),
    "learned": ("gpt2", {"n_positions": 64}, 64),
    "part of a multimodal one": ("gemma3", {"text_config": {"max_position_embeddings": 3000}}, 3000),
    "mamba": ("mamba", {}, None),
    "alibi": ("bloom", {}, None),
    "alibi of a fixed length": ("mpt", {"max_seq_len": 64}, 64),
    "alibi by a switch": ("falcon", {"alibi": True, "max_position_embeddings": 1000}, None),
    "the same without": ("falcon", {"alibi": False, "max_position_embeddings": 1000}, 1000),
}


@pytest.mark.filterwarnings("ignore")  # transformers warns of sizes that no published model has
@pytest.mark.parametrize(("family", "shape", "expected"), MODELS.values(), ids=MODELS)
def test_max_positions_match_inference_server(family: str, shape: dict[str, Any], expected: int | None) -> None:
    import_libraries()
    from transformers import AutoConfig

    assert get_max_positions(AutoConfig.for_model(family, **shape)) == expected


@pytest.mark.parametrize(("positions", "expected"), [(None, 300), (64, 64), (300, 300), (4096, 300)])
def test_limit_length_lowers_without_changing_config(positions: int | None, expected: int) -> None:
    job_config = build_config(max_length=300)
    digest = job_config.digest()
    assert limit_max_length(job_config, positions).model.max_length == expected
    assert (job_config.model.max_length, job_config.digest()) == (300, digest)


def prepare_limited(folder: Path, method: str = "sft", overlength: str = "drop", **row: Any) -> PreparedData:
    """A short row and a long one, for training and for validation, prepared for a model with 64 positions."""
    settings = build_config({"method": method, "batchSize": 2}, preparation={"overlength": overlength})
    sides = [
        [
            {**row, **prompt_completion("Hi", f"yes {side}")},
            {**row, **prompt_completion("Hello there", f"{side} " * 100)},
        ]
        for side in "ab"
    ]
    if method == "dpo":
        sides = [
            [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in rows] for rows in sides
        ]
    files = [write_rows(folder / f"rows {number}", rows) for number, rows in enumerate(sides)]
    source = settings.dataset.sources[0]
    both = DataFiles([(source, files[:1])], "sha256:0", [(source, files[1:])])
    return prepare_dataset(settings, both, RowEncoding(tokenizer(), get_method(settings), 64), folder / "work")


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_positions_longer_rows_are_dropped(tmp_path: Path, method: str) -> None:
    prepared = prepare_limited(tmp_path, method, **({"label": True} if method == "kto" else {}))
    assert prepared.report.rejected == {"overlength": 2}
    assert (len(prepared.dataset), len(prepared.validation or [])) == (1, 1)


def test_positions_longer_rows_are_truncated(tmp_path: Path) -> None:
    prepared = prepare_limited(tmp_path, overlength="truncate")
    assert [max(len(row["input_ids"]) for row in rows or []) for rows in (prepared.dataset, prepared.validation)] == [
        64,
        64,
    ]
    assert prepared.report.truncated == 1


def test_positions_longer_rows_are_named_with_limit(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"has 2\d\d tokens, the base model has positions for 64") as caught:
        prepare_limited(tmp_path, overlength="fail")
    assert caught.value.reason is Reason.DATA_INVALID


def test_positions_lowered_length_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    prepare_limited(tmp_path)
    lines = [message for message in caplog.messages if "maxLength" in message]
    assert lines == ["model.maxLength is lowered from 300 to 64: the base model has positions for 64"]


def test_kto_collator_mismatched_answer_is_cut_to_positions() -> None:
    from finetune_trainer.training.methods.kto import KTODataCollator

    rows = [
        {"prompt_ids": [1] * 6, "completion_ids": [2], "label": True},
        {"prompt_ids": [1], "completion_ids": [3] * 6, "label": False},
    ]
    longest = {positions: KTODataCollator(0, positions)(rows)["KL_input_ids"].shape[1] for positions in (None, 8, 12)}
    assert longest == {None: 12, 8: 8, 12: 12}
