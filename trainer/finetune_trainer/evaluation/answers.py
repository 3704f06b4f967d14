"""Answers of several models to the same prompts, and the records of them that are published. Imports torch, so import
it only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.evaluation.prompts import (
    EvaluationRow,
    TemplateFrame,
    list_cut_answers,
    list_unfinished_reasoning,
)
from finetune_trainer.graders.base import Grade
from finetune_trainer.modeling.batch_limits import choose_new_tokens
from finetune_trainer.modeling.generation import TextGenerator
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.records.evaluation import GeneratedAnswer, Sample, SampleTurn

BASE, TUNED = "base", "tuned"
"""Names of the two models in records of answers, besides the names of `evaluation.baselines`."""


@dataclass
class PromptAnswers:
    """Prompts in tokens, and the answers to them by the name of the model."""

    prompts: Sequence[Sequence[int]] = ()
    max_new_tokens: int = 0
    """Maximum length of an answer, in tokens."""
    frame: TemplateFrame = field(default_factory=TemplateFrame)
    """Text of the chat template around an answer, which is removed from the answers."""
    by_model: dict[str, list[GeneratedAnswer]] = field(default_factory=dict)

    def generate(self, loaded: LoadedModel, heartbeat: Callable[[], None]) -> list[GeneratedAnswer]:
        """Return the answers of the model as it is now: with its active adapter, or without one."""
        generator = TextGenerator(loaded.model, loaded.tokenizer, self.max_new_tokens, heartbeat)
        return [
            GeneratedAnswer(text=self.frame.remove_from(answer.final), reasoning=answer.reasoning, is_cut=answer.is_cut)
            for answer in generator.generate(self.prompts)
        ]

    def list_texts(self, model: str) -> list[str]:
        """Return the answers of a model as metrics compare them."""
        return [answer.text for answer in self.by_model[model]]

    def get_redacted(self, index: int) -> dict[str, GeneratedAnswer]:
        """Return the answers to one prompt, without personal data and secrets."""
        return {model: _redact_answer(answers[index]) for model, answers in self.by_model.items()}


@dataclass
class RowAnswers(PromptAnswers):
    """Answers to validation or test rows."""

    rows: Sequence[EvaluationRow] = ()
    grades_by_model: dict[str, dict[str, list[Grade]]] = field(default_factory=dict)
    """The grades of the answers by the name of the model and of the grader."""

    def list_endpoints(self, index: int) -> list[str]:
        """Return the names of the endpoints that a row and its answers were sent to."""
        grades = (grades[index] for by_name in self.grades_by_model.values() for grades in by_name.values())
        return sorted({grade.sent_to for grade in grades} - {""})

    @classmethod
    def from_rows(cls, rows: Sequence[EvaluationRow], frame: TemplateFrame, config: TrainerConfig) -> RowAnswers:
        """Return the prompts of the rows, with a maximum length that allows for the longest answer of the data."""
        longest = max((row.answer_tokens for row in rows), default=0)
        return cls([row.prompt for row in rows], choose_new_tokens(config, longest), frame, rows=rows)

    @property
    def references(self) -> list[str]:
        """The answers of the data."""
        return [row.reference for row in self.rows]

    def list_problems(self) -> list[str]:
        """Return what lowers the scores of the answers, each with the reason."""
        cut_count = sum(answer.is_cut for answer in self.by_model[TUNED])
        return [
            *list_cut_answers(self.rows, cut_count, self.max_new_tokens),
            *list_unfinished_reasoning(self.by_model[BASE], self.max_new_tokens),
        ]

    def build_samples(self, max_rows: int) -> Iterator[Sample]:
        """Yield the first rows as the report shows them, without personal data and secrets."""
        for index, row in enumerate(self.rows[:max_rows]):
            yield Sample(
                kind="row",
                turns=[SampleTurn(role=role, text=redact_pii(text, PII_KINDS)) for role, text in row.turns],
                reference=redact_pii(row.reference, PII_KINDS),
                reference_reasoning=redact_pii(row.reasoning, PII_KINDS),
                **_split_models(self.get_redacted(index)),
            )


@dataclass
class SamplePromptAnswers(PromptAnswers):
    """Answers to `evaluation.samplePrompts`."""

    texts: Sequence[str] = ()
    dropped: int = 0
    """Number of prompts that leave the model no position for an answer, which are not in `texts`."""

    @classmethod
    def encode(
        cls,
        texts: Sequence[str],
        loaded: LoadedModel,
        max_new_tokens: int,
        frame: TemplateFrame,
        template_date: date | None,
    ) -> SamplePromptAnswers:
        """Tokenize the prompts as in training, without those that take all positions of the model."""
        positions = get_max_positions(loaded.model.get_base_model().config)
        encoded = {text: encode_prompt(loaded.tokenizer, text, template_date) for text in texts}
        # On a GPU, a position that the model lacks aborts the process. An answer needs one more than the prompt.
        fitting = [text for text in texts if positions is None or len(encoded[text]) < positions]
        prompts = [encoded[text] for text in fitting]
        return cls(prompts, max_new_tokens, frame, texts=fitting, dropped=len(texts) - len(fitting))

    def build_samples(self) -> Iterator[Sample]:
        """Yield the prompts as the report shows them: they are written by the user, and are not redacted."""
        for index, text in enumerate(self.texts):
            yield Sample(
                kind="prompt", turns=[SampleTurn(role="user", text=text)], **_split_models(self.get_redacted(index))
            )


def _split_models(answers: Mapping[str, GeneratedAnswer]) -> dict[str, Any]:
    """Return the fields of a `Sample` for the answers of each model."""
    baselines = {model: answer for model, answer in answers.items() if model not in (BASE, TUNED)}
    return {"base": answers[BASE], "tuned": answers[TUNED], "baselines": baselines}


def _redact_answer(answer: GeneratedAnswer) -> GeneratedAnswer:
    texts = {"text": answer.text, "reasoning": answer.reasoning}
    return answer.model_copy(update={name: redact_pii(text, PII_KINDS) for name, text in texts.items()})
