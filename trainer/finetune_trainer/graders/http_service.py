"""Asks a web service of the user for a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_trainer.contract import HttpGrader
from finetune_trainer.graders.base import Grade, GradedAnswer, Grader
from finetune_trainer.graders.endpoint import CallError, EndpointClient
from finetune_trainer.graders.judge import read_score


class HttpServiceGrader(Grader):
    """Scores by the number that the service replies with."""

    def __init__(self, settings: HttpGrader, client: EndpointClient) -> None:
        self._settings = settings
        self._client = client

    def grade(self, answers: Sequence[GradedAnswer]) -> list[Grade]:
        replies = self._client.post_all("", [self._build_body(answer) for answer in answers])
        return [self._read_grade(reply) for reply in replies]

    def _build_body(self, answer: GradedAnswer) -> dict[str, Any]:
        fields = self._settings.item_fields
        return {
            "item": {name: answer.item[name] for name in fields if name in answer.item},
            "prompt": [{"role": role, "content": text} for role, text in answer.prompt],
            "answer": answer.text,
            "reference": answer.reference,
        }

    def _read_grade(self, reply: object) -> Grade:
        endpoint = self._settings.endpoint
        if isinstance(reply, CallError):
            return Grade(None, f"the service did not answer: {reply}", endpoint if reply.is_sent else "")
        score = read_score(reply)
        if score is None or not 0 <= score <= 1:
            return Grade(None, "the service did not reply with a JSON object with a score from 0 to 1", endpoint)
        return Grade(score, sent_to=endpoint)
