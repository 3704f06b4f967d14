"""All graders of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from finetune_trainer import contract
from finetune_trainer.graders.base import Grade, GradedAnswer, Grader
from finetune_trainer.graders.endpoint import EndpointClient
from finetune_trainer.graders.http_service import HttpServiceGrader
from finetune_trainer.graders.json_schema import JsonSchemaGrader
from finetune_trainer.graders.judge import JudgeGrader
from finetune_trainer.graders.length import LengthGrader
from finetune_trainer.graders.math_answer import MathGrader
from finetune_trainer.graders.numeric import NumericGrader
from finetune_trainer.graders.string_check import StringCheckGrader
from finetune_trainer.graders.text_similarity import TextSimilarityGrader
from finetune_trainer.graders.tool_call import ToolCallGrader
from finetune_trainer.graders.weighted import combine_grades

_BUILDERS: Mapping[type[contract.Model], Callable[[str, Any], Grader]] = {
    contract.StringCheck: StringCheckGrader,
    contract.Numeric: NumericGrader,
    contract.Math: MathGrader,
    contract.JsonSchema: JsonSchemaGrader,
    contract.ToolCall: ToolCallGrader,
    contract.TextSimilarity: TextSimilarityGrader,
    contract.Length: LengthGrader,
}
"""The grader of each kind, which takes the name and the settings."""


def select_local(graders: Sequence[contract.Grader]) -> list[contract.Grader]:
    """Return the graders that call no endpoint."""
    remote = {grader.name for grader in graders if grader.judge or grader.http}
    return [
        grader
        for grader in graders
        if grader.name not in remote
        and not (grader.weighted and any(term.grader in remote for term in grader.weighted.terms))
    ]


class GraderSuite:
    """Scores answers by several graders. Weighted means follow from the grades of the others."""

    def __init__(
        self,
        graders: Sequence[contract.Grader],
        endpoints: Sequence[contract.Endpoint] = (),
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        """Build the graders. `heartbeat` is called while endpoints are called.

        Raises `CONFIG_INVALID` for an invalid pattern or schema, and `AUTH_FAILED` for an invalid key of an endpoint.
        """
        self.clients = {endpoint.name: EndpointClient(endpoint, heartbeat) for endpoint in endpoints}
        self._graders = {grader.name: self._build_grader(grader) for grader in graders if grader.weighted is None}
        self._settings = list(graders)

    def _build_grader(self, grader: contract.Grader) -> Grader:
        if grader.judge:
            return JudgeGrader(grader.judge, self.clients[grader.judge.endpoint])
        if grader.http:
            return HttpServiceGrader(grader.http, self.clients[grader.http.endpoint])
        return _BUILDERS[type(grader.settings)](grader.name, grader.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for grader in self._graders.values():
            grader.close()

    def grade(self, answers: Sequence[GradedAnswer]) -> dict[str, list[Grade]]:
        """Return the grades of the answers by the name of the grader, in the order of the config."""
        grades = {name: grader.grade(answers) for name, grader in self._graders.items()}
        combined = {
            grader.name: combine_grades(grader.weighted, grades) for grader in self._settings if grader.weighted
        }
        return {grader.name: (grades | combined)[grader.name] for grader in self._settings}
