"""Labels of prepared rows: the answers with their endings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_TIMEOUT, chat, tokenizer, write_rows

from finetune_trainer.data import preparation
from finetune_trainer.data.preparation import DataFiles
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.training.methods import get_method

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
PREFERENCES = {
    "kept": ({"prompt": "Why?", "chosen": "Because of that", "rejected": "No idea"}, None),
    "the same answer twice": ({"prompt": "Why?", "chosen": "So", "rejected": "So\u200b"}, "identicalAnswers"),
    "empty": ({"prompt": "Why?", "chosen": "So", "rejected": "\u200b"}, "emptyAnswer"),
    "too long": ({"prompt": "Why?", "chosen": "So", "rejected": "x " * 400}, "overlength"),
}


@pytest.mark.parametrize(("row", "reason"), PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_have_one_prompt_and_two_answers(tmp_path: Path, row: dict[str, str], reason: str | None) -> None:
    fine = {"prompt": "What?", "chosen": "This", "rejected": "That"}
    job_config = build_config({"method": "dpo"}, preparation={})
    prepared = prepare_rows(tmp_path, [fine, row], job_config)
    assert prepared.report.rejected == ({reason: 1} if reason else {})
    words, first = tokenizer(), prepared.dataset[0]
    assert words.decode(first["prompt_ids"]) == "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    answers = [words.decode(first[name]) for name in ("chosen_ids", "rejected_ids")]
    assert answers == ["This<|im_end|>", "That<|im_end|>"]


BRACKETED = CHATML.replace("<|im_start|>", "[").replace("<|im_end|>", " [/END]")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_ordinary_end_text_gets_eos(tmp_path: Path, method: str) -> None:
    rows = [{"prompt": "What?", "chosen": "This", "rejected": "That"}] * 2
    settings = build_config({"method": method, "batchSize": 2}, preparation={"deduplicate": "none"})
    dataset = prepare_rows(tmp_path, rows, settings, template=BRACKETED).dataset
    words = tokenizer()
    assert words.decode(dataset[0]["prompt_ids"]).endswith("What? [/END]\n[assistant\n")
    answers = {words.decode(row[name]) for row in dataset for name in row if name in ANSWER_COLUMNS}
    assert answers == {"This<|im_end|>", "That<|im_end|>"}


def test_kto_rows_keep_their_label(tmp_path: Path) -> None:
    rows = [{**prompt_completion("Why?", "So"), "label": True}, {**prompt_completion("Why?", "So"), "label": False}]
    prepared = prepare_rows(tmp_path, rows, build_config({"method": "kto", "batchSize": 2}))
    assert prepared.dataset["label"][:] == [True, False]
    assert tokenizer().decode(prepared.dataset[0]["completion_ids"]) == "So<|im_end|>"


ENDINGS: dict[str, tuple[str | None, str | None, dict[str, Any]]] = {
    "a template without markers": (CHATML, None, chat("Hi", "Hello")),
    "a template with markers": (MARKED_CHATML, None, chat("Hi", "Hello")),
    "no template": (None, None, prompt_completion("Hi", " Hello")),
    "no template and a first token": (None, "<|begin_of_text|>", prompt_completion("Hi", " Hello")),
    "a first token that the text has already": (
        None,
        "<|begin_of_text|>",
        prompt_completion("<|begin_of_text|>Hi", " Hello"),
    ),
    "plain text": (None, "<|begin_of_text|>", {"text": "All of this"}),
    "plain text for a chat model": (CHATML, "<|begin_of_text|>", {"text": "All of this"}),
}


@pytest.mark.parametrize("eos_is_pad", [False, True], ids=["own pad", "pad is eos"])
@pytest.mark.parametrize(("template", "first", "row"), ENDINGS.values(), ids=ENDINGS)
def test_prepared_answer_ends_once_with_single_bos(
    tmp_path: Path, template: str | None, first: str | None, row: dict[str, Any], eos_is_pad: bool
) -> None:
    words, job_config = tokenizer(template, first), build_config()
    if eos_is_pad:
        words.pad_token = words.eos_token
    files = DataFiles([(job_config.dataset.sources[0], [write_rows(tmp_path / "rows", [row])])], "")
    example = preparation.prepare_dataset(
        job_config, files, RowEncoding(words, get_method(job_config)), tmp_path
    ).dataset[0]
    ids, trained_labels = example["input_ids"], [label for label in example["labels"] if label != -100]
    assert trained_labels[-1] == words.eos_token_id
    begins = words.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids.count(begins) == (1 if first else 0)
    if "text" in row:
        assert words.decode(trained_labels) == "All of this<|im_end|>"
