"""Checks whether an answer is JSON that a schema accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract import JsonSchema, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.graders.base import AnswerGrader, AnswerProblem, GradedAnswer
from finetune_trainer.graders.templates import load_json, resolve_value

if TYPE_CHECKING:
    from jsonschema_rs import Validator


class JsonSchemaGrader(AnswerGrader):
    """Scores 1 if the text is JSON that the schema accepts."""

    def __init__(self, name: str, settings: JsonSchema) -> None:
        self._settings = settings
        self._validator = _build_validator(settings.schema_, f"evaluation.graders[{name}].jsonSchema.schema")

    def score(self, answer: GradedAnswer) -> float:
        value = resolve_value(self._settings.input, answer)
        if isinstance(value, str):
            try:
                value = load_json(value)
            except ValueError as error:
                raise AnswerProblem("the answer is not JSON") from error
        return float(self._validator.is_valid(value))


def _build_validator(schema: str, field: str) -> Validator:
    """Return the validator. Its patterns take linear time, and it reads no other documents."""
    import jsonschema_rs

    try:
        content = load_json(schema)
        if not isinstance(content, dict | bool):
            raise TrainerError(Reason.CONFIG_INVALID, f"{field} must be a JSON object")
        return jsonschema_rs.validator_for(content, pattern_options=jsonschema_rs.RegexOptions(), offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # ValidationError is a ValueError
        problem = str(error).partition("\n")[0][:200]
        raise TrainerError(Reason.CONFIG_INVALID, f"{field} is not a valid JSON Schema: {problem}") from error
