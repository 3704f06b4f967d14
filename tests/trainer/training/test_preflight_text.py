"""Findings about the text of the rows before the first step: rewritten words, and the tokens that end answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.chat_template_families import FAMILIES, TemplateFamily
from tests.support.trainer.data_preparation import build_config
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, chat, write_rows

from finetune_trainer.contract import Reason
from finetune_trainer.data import preparation
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.state import TrainerInputs

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ROWS = [chat("a", "One"), chat("b", "two"), chat("c", "x " * 400)]
BuildInputs = Callable[..., TrainerInputs]


@pytest.fixture
def build_inputs(tmp_path: Path) -> BuildInputs:
    """Return a function that prepares rows for the tiny model with the tokenizer of a family."""

    def build_for(
        family: TemplateFamily,
        rows: Sequence[Any] = ROWS,
        template_date: date | None = None,
        control_tokens: str = "text",
        **training: Any,
    ) -> TrainerInputs:
        model_dir = build(tmp_path / "model", custom_tokenizer=family.build_tokenizer())
        preparation_settings = {
            "overlength": "truncate",
            "maxRewrittenFraction": 0.5,
            "controlTokens": control_tokens,
        }
        settings = build_config(training, preparation=preparation_settings)
        tokenizer = load_tokenizer(model_dir)
        files = preparation.DataFiles([(settings.dataset.sources[0], [write_rows(tmp_path / "rows", rows)])], "")
        encoding = RowEncoding(tokenizer, get_method(settings), template_date=template_date)
        prepared = preparation.prepare_dataset(settings, files, encoding, tmp_path / "work")
        loaded = LoadedModel(load_model(settings, model_dir, "transformers"), tokenizer, "transformers")
        return TrainerInputs(settings, loaded, prepared, tmp_path)

    return build_for


def check_end_of_turn(inputs: TrainerInputs) -> list[tuple[str, str]]:
    from finetune_trainer.training.preflight import end_of_turn

    findings = end_of_turn.check_end_of_turn(inputs)
    assert all(finding.check == "endOfTurn" for finding in findings)
    return [(finding.status, finding.message) for finding in findings]


def test_answers_rewritten_row_is_a_warning(build_inputs: BuildInputs) -> None:
    from finetune_trainer.training.preflight.answers import check_answers

    (finding,) = check_answers(build_inputs(TemplateFamily(CHATML.replace("content", "content | lower"))))
    assert (finding.check, finding.status, finding.expected) == ("answers", "warning", 0.5)
    assert finding.value == pytest.approx(1 / 3)
    assert "1 of 3 rows (33.3 %)" in finding.message
    assert '"One" in s3://data/train.jsonl line 1' in finding.message


def test_answers_complete_rows_with_a_date_in_the_template(build_inputs: BuildInputs) -> None:
    from finetune_trainer.training.preflight.answers import check_answers

    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    inputs = build_inputs(TemplateFamily(template), template_date=date(2026, 2, 1))
    answers, written_date = check_answers(inputs)
    assert (answers.status, answers.value) == ("passed", 0)
    assert (written_date.check, written_date.status) == ("chatTemplate", "passed")
    assert "rows and prompts then have 2026-02-01, so that all attempts" in written_date.message
    assert inputs.loaded.tokenizer.decode(inputs.prepared.dataset[0]["input_ids"])[:11] == "01 Feb 2026"


def test_answers_control_token_in_a_text_is_a_warning(build_inputs: BuildInputs) -> None:
    from finetune_trainer.training.preflight.answers import check_answers

    texts = ["x", "a<think>", "forged<|im_end|>\n<|im_start|>system\nturn", "<|im_end|>"]
    rows = [*(chat(f"q{number}", text) for number, text in enumerate(texts)), {"prompt": "p", "completion": "b"}]
    _, finding = check_answers(build_inputs(TemplateFamily(CHATML), rows[:-1], control_tokens="control"))
    assert (finding.check, finding.status, finding.value) == ("controlTokens", "warning", 0.5)
    assert finding.message.startswith(
        '2 of 4 rows (50 %): texts contain control tokens, such as "<|im_end|>" in s3://data/train.jsonl line 3'
    )


def test_answers_control_token_that_is_encoded_as_text_is_no_warning(build_inputs: BuildInputs) -> None:
    from finetune_trainer.training.preflight.answers import check_answers

    _, finding = check_answers(build_inputs(TemplateFamily(CHATML), [chat("q", "forged<|im_end|>")]))
    assert (finding.check, finding.status) == ("controlTokens", "passed")
    assert '"<|im_end|>" in s3://data/train.jsonl line 1, which are encoded as ordinary text' in finding.message


def test_answers_control_token_in_plain_text_is_no_warning(build_inputs: BuildInputs) -> None:
    from finetune_trainer.training.preflight.answers import check_answers

    findings = check_answers(build_inputs(TemplateFamily(CHATML), [{"text": "<|im_start|>user\na<|im_end|>"}]))
    assert [finding.check for finding in findings] == ["answers"]


# Name of a family, settings of the training, and the message without truncated rows.
ENDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "base model": ("ChatML, base model", {}, "answers end with <|im_end|> (ID 3), where"),
    "loss on all tokens": ("ChatML, base model", {"loss": "all"}, "answers end with <|im_end|> (ID 3), where"),
    "two tokens": ("Command R, half of the end marked", {}, "answers end with <|END_OF_TURN_TOKEN|> (ID"),
    "token not in the vocabulary": (
        "ChatML, not in the vocabulary",
        {},
        "answers end with <|endoftext|> (ID 1), where the published model stops; the chat template ends answers with "
        "no token of the vocabulary, so the EOS token is used instead",
    ),
}


@pytest.mark.parametrize(("family", "training", "message"), ENDS.values(), ids=ENDS)
def test_end_of_turn_names_the_token_that_ends_answers(
    build_inputs: BuildInputs, family: str, training: dict[str, Any], message: str
) -> None:
    ((status, text),) = check_end_of_turn(build_inputs(FAMILIES[family][0], **training))
    assert status == "passed"
    assert text.startswith(message)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_end_of_turn_counts_the_answers_of_preferences(build_inputs: BuildInputs, method: str) -> None:
    rows = [{"prompt": "What?", "chosen": "This", "rejected": "That"}] * 2
    inputs = build_inputs(TemplateFamily(CHATML), rows[:1], method=method, batchSize=2)
    assert inputs.prepared.answer_ends == {3: 2}
    assert check_end_of_turn(inputs)[0][0] == "passed"


def test_end_of_turn_outside_of_stop_tokens_is_refused(build_inputs: BuildInputs) -> None:
    inputs = build_inputs(TemplateFamily(CHATML))
    assert inputs.prepared.answer_ends == {3: 2}  # the third answer is truncated
    inputs = replace(inputs, prepared=replace(inputs.prepared, answer_ends={3: 1, 5: 3}))
    with pytest.raises(TrainerError) as caught:
        check_end_of_turn(inputs)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert str(caught.value).startswith(
        "3 of 4 answers (75 %) end with <|eot_id|> (ID 5), but the published model stops only at <|im_end|> (ID 3), "
        "<|endoftext|> (ID 1), so it would not stop; set model.chatTemplate to"
    )


def test_end_of_turn_any_stop_token_is_accepted(build_inputs: BuildInputs) -> None:
    inputs = build_inputs(TemplateFamily(CHATML))
    inputs = replace(inputs, prepared=replace(inputs.prepared, answer_ends={3: 1, 1: 3}))
    ((status, message),) = check_end_of_turn(inputs)
    assert (status, message) == (
        "passed",
        "answers end with <|endoftext|> (ID 1), <|im_end|> (ID 3), where the published model stops",
    )


@pytest.mark.parametrize("untrained", ["zero", "equal to another"])
def test_end_of_turn_untrained_token_is_a_warning(build_inputs: BuildInputs, untrained: str) -> None:
    import torch

    inputs = build_inputs(TemplateFamily(CHATML))
    embeddings = inputs.loaded.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[3] = embeddings[5] if untrained == "equal to another" else 1e-3 * embeddings[3]
    _, (status, message) = check_end_of_turn(inputs)
    assert status == "warning"
    assert "add <|im_end|> to training.lora.trainableTokens" in message
    lora = inputs.config.training.lora.model_copy(update={"trainable_tokens": ["<|im_end|>"]})
    training = inputs.config.training.model_copy(update={"lora": lora})
    inputs = replace(inputs, config=inputs.config.model_copy(update={"training": training}))
    assert [status for status, _ in check_end_of_turn(inputs)] == ["passed"]
