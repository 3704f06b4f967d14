"""Graders: what a good answer is, as data. `evaluation.graders` lists them, and `training.rewards` refers to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import Model, cel_rules

_PATH = (
    r"\{\{ ?(item\.[^{}.\s]+(\.[^{}.\s]+)*|(sample|reference)\.output_text"
    r"|(sample|reference)\.output_json(\.[^{}.\s]+)+) ?\}\}"
)
PATH_PATTERN = f"^{_PATH}$"
"""A reference to a value of a row, of the generated answer, or of the answer of the data."""
ANSWER = "{{sample.output_text}}"
DATA_ANSWER = "{{reference.output_text}}"
MAX_GRADERS = 8

EndpointName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=32)
]
GraderName = Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9]*$", min_length=1, max_length=32)]
Value = Annotated[str, StringConstraints(max_length=512)]
"""A path, or else a literal text. Rules of the grader check that a text with braces is a path."""

_RESERVED_NAMES = (
    "accuracy",
    "macroF1",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "chrf",
    "exactMatch",
    "perplexity",
    "biasFlags",
    "generalPerplexity",
    "crossValidationLoss",
    "crossValidationDeviation",
    "loss",
    "lossSum",
    "lossTokens",
    "finalLoss",
    "bestStep",
    "steps",
    "tokens",
    "supervisedTokens",
    "tokensPerSecond",
    "peakMemoryBytes",
    "energyWattHours",
)
_RESERVED_PREFIXES = ("base", "test", "train", "eval")
"""Prefixes of the names of metrics that are made from other names, or that the training measures."""


def _path_rule(*fields: str) -> tuple[str, str]:
    """Return the rule that the fields are paths, or texts without double braces."""
    pattern = PATH_PATTERN.replace("\\", "\\\\")
    rule = " && ".join(f"(!self.{field}.contains('{{{{') || self.{field}.matches('{pattern}'))" for field in fields)
    return (
        rule,
        f"{' and '.join(fields)} must be a text, or one path in double braces: item.FIELD, sample.output_text, "
        "sample.output_json.FIELD, reference.output_text or reference.output_json.FIELD",
    )


class StringCheck(Model):
    """StringCheck compares texts. The score is 1 or 0."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_path_rule("input", "reference")))

    operation: Literal["equals", "notEquals", "contains", "matches"] = "equals"
    """operation is the comparison. `equals` and `notEquals` compare all of both texts, without spaces around them,
    `contains` looks for the reference in the input, and `matches` for the regular expression (RE2) in `reference`.
    Defaults to equals."""
    input: Value = ANSWER
    """input is the path of the text to check. Defaults to {{sample.output_text}}."""
    reference: Value = DATA_ANSWER
    """reference is the path of the text to compare with, or the text itself. Defaults to
    {{reference.output_text}}."""
    ignore_case: bool = False
    """ignoreCase compares without regard to upper and lower case. Defaults to false."""


class Numeric(Model):
    """Numeric compares numbers. The score is 1 or 0."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_path_rule("input", "reference")))

    input: Value = ANSWER
    """input is the path of the text with the number. Defaults to {{sample.output_text}}."""
    reference: Value = DATA_ANSWER
    """reference is the path of the expected number, or the number itself. Defaults to
    {{reference.output_text}}."""
    extract: Annotated[str, StringConstraints(max_length=512)] | None = None
    """extract is a regular expression (RE2) that finds the number in the input; its first group is the number, if it
    has groups. The last match counts. If unset, the last number of the text is taken."""
    tolerance: float = Field(default=0, ge=0)
    """tolerance is the largest absolute difference that scores 1. Defaults to 0."""
    relative_tolerance: float = Field(default=0, ge=0, le=1)
    """relativeTolerance is the largest difference that scores 1, as a fraction of the reference. The larger of both
    tolerances counts. Defaults to 0."""


class Math(Model):
    """Math compares mathematical expressions, such as LaTeX, by their value. The score is 1 or 0."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_path_rule("input", "reference")))

    input: Value = ANSWER
    """input is the path of the text with the expression. Defaults to {{sample.output_text}}."""
    reference: Value = DATA_ANSWER
    """reference is the path of the expected expression, or the expression itself. Defaults to
    {{reference.output_text}}."""


class JsonSchema(Model):
    """JsonSchema checks whether the text is JSON that a schema accepts. The score is 1 or 0."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            _path_rule("input"),
            ("bytes(self.schema).size() <= 16384", "schema must not be longer than 16384 bytes"),
        )
    )

    input: Value = ANSWER
    """input is the path of the text to check. Defaults to {{sample.output_text}}."""
    schema_: Annotated[str, StringConstraints(min_length=2, max_length=16384)] = Field(alias="schema")
    """schema is a JSON Schema as JSON text, by default of draft 2020-12. References to other documents are
    refused."""


class ToolCall(Model):
    """ToolCall compares the tool calls of the answer with those of the data. The score is the fraction of calls that
    are equal, of those in either."""

    arguments: Literal["equal", "subset", "ignored"] = "equal"
    """arguments sets when the arguments of two calls of the same function are equal. `equal`: if all are, `subset`: if
    the answer has at least those of the data, `ignored`: always. Defaults to equal."""


class TextSimilarity(Model):
    """TextSimilarity measures how similar two texts are, from 0 to 1."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_path_rule("input", "reference")))

    metric: Literal["rougeL", "chrf"]
    """metric is the measure. `rougeL`: F-measure of the longest common sequence of words. `chrf`: F-measure of
    common sequences of characters, divided by 100."""
    input: Value = ANSWER
    """input is the path of the text to measure. Defaults to {{sample.output_text}}."""
    reference: Value = DATA_ANSWER
    """reference is the path of the text to compare with, or the text itself. Defaults to
    {{reference.output_text}}."""


class Length(Model):
    """Length checks the length of a text. The score is 1 within the limits, and decreases to 0 linearly: at no text
    below `minimum`, and at twice `maximum` above it."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            _path_rule("input"),
            ("has(self.minimum) || has(self.maximum)", "at least one of minimum and maximum must be set"),
            (
                "!has(self.minimum) || !has(self.maximum) || self.minimum <= self.maximum",
                "minimum must not be greater than maximum",
            ),
        )
    )

    input: Value = ANSWER
    """input is the path of the text to measure. Defaults to {{sample.output_text}}."""
    unit: Literal["characters", "words"] = "words"
    """unit is the unit of the limits. Defaults to words."""
    minimum: int | None = Field(default=None, ge=1, le=1_000_000)
    """minimum is the smallest length that scores 1."""
    maximum: int | None = Field(default=None, ge=1, le=1_000_000)
    """maximum is the largest length that scores 1."""


class Judge(Model):
    """Judge asks a language model for a number. The score is that number, scaled from its range to 0 to 1."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("self.minimum < self.maximum", "minimum must be less than maximum"),
        )
    )

    endpoint: EndpointName
    """endpoint is the name of the endpoint in `evaluation.endpoints`, an OpenAI-compatible server: calls go to
    `/chat/completions` below its URI."""
    model: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", min_length=1, max_length=255)]
    """model is the name of the model on that server."""
    instructions: Annotated[
        str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$", min_length=1, max_length=4096)
    ]
    """instructions say what a good answer is. They are the system message. The question, the answer and the answer of
    the data follow as JSON in a message of their own and are never part of the instructions."""
    minimum: float = 0
    """minimum is the number for the worst answer. Defaults to 0."""
    maximum: float = 10
    """maximum is the number for the best answer. Defaults to 10."""
    max_tokens: int = Field(default=512, ge=16, le=8192)
    """maxTokens is the maximum length of the reply, in tokens. Defaults to 512."""


class HttpGrader(Model):
    """HttpGrader asks a web service of yours. It gets a POST request with a JSON object that has `item`, `prompt`,
    `answer` and `reference`, and replies with `{"score": 0.5}`, a number from 0 to 1."""

    endpoint: EndpointName
    """endpoint is the name of the endpoint in `evaluation.endpoints`. Calls go to its URI."""
    item_fields: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default=[], max_length=16
    )
    """itemFields are the columns of the row that are sent. Defaults to none."""


class WeightedTerm(Model):
    """WeightedTerm is one term of a weighted mean."""

    grader: GraderName
    """grader is the name of another grader."""
    weight: float = Field(default=1, gt=0, le=1000)
    """weight is its weight. Defaults to 1."""


class Weighted(Model):
    """Weighted is the weighted mean of the scores of other graders."""

    terms: list[WeightedTerm] = Field(min_length=1, max_length=MAX_GRADERS - 1)
    """terms are the graders and their weights. Graders of kind `weighted` cannot be terms."""


GRADER_KINDS = (
    "stringCheck",
    "numeric",
    "math",
    "jsonSchema",
    "toolCall",
    "textSimilarity",
    "length",
    "judge",
    "http",
    "weighted",
)
_KIND_COUNT = " + ".join(f"(has(self.{kind}) ? 1 : 0)" for kind in GRADER_KINDS)


class Grader(Model):
    """Grader scores an answer from 0 to 1. Exactly one kind must be set."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (f"{_KIND_COUNT} == 1", f"exactly one of {', '.join(GRADER_KINDS)} must be set"),
            (
                f"!(self.name in {[*_RESERVED_NAMES]})"
                + "".join(f" && !self.name.startsWith('{prefix}')" for prefix in _RESERVED_PREFIXES),
                "name is that of a metric, or begins with base, eval, test or train, as other metrics do",
            ),
        )
    )

    name: GraderName
    """name is the name of the grader and of the metric."""
    string_check: StringCheck | None = None
    """stringCheck compares texts."""
    numeric: Numeric | None = None
    """numeric compares numbers."""
    math: Math | None = None
    """math compares mathematical expressions by their value."""
    json_schema: JsonSchema | None = None
    """jsonSchema checks JSON against a schema."""
    tool_call: ToolCall | None = None
    """toolCall compares tool calls with those of the data."""
    text_similarity: TextSimilarity | None = None
    """textSimilarity measures how similar two texts are."""
    length: Length | None = None
    """length checks the length of a text."""
    judge: Judge | None = None
    """judge asks a language model."""
    http: HttpGrader | None = None
    """http asks a web service of yours."""
    weighted: Weighted | None = None
    """weighted is a weighted mean of other graders."""

    @property
    def settings(self) -> Model:
        """The settings of the one kind that is set."""
        values: list[Any] = [value for name, value in self if name != "name" and value is not None]
        settings: Model = values[0]
        return settings


class Endpoint(Model):
    """Endpoint is a server that graders of the kinds `judge` and `http` call. Prompts and answers leave the pod for
    it."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "!self.uri.contains('/../') && !self.uri.endsWith('/..') && bytes(self.uri).size() <= 512",
                "uri must not contain '..' and must not be longer than 512 bytes",
            ),
            (
                "!self.uri.matches('^https?://(169[.]254[.]|0[.]0[.]0[.]0)') && !self.uri.contains('://[fe80:') "
                "&& !self.uri.contains('://[::]')",
                "uri must not be a link-local or unspecified address",
            ),
        )
    )

    name: EndpointName
    """name is the name that graders refer to."""
    uri: Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@\\]+$", max_length=512)]
    """uri is the URL of the server, without credentials, such as `http://vllm.judges:8000/v1`."""
    timeout_seconds: int = Field(default=30, ge=1, le=600)
    """timeoutSeconds is the time after which a call fails. Defaults to 30."""
    concurrency: int = Field(default=4, ge=1, le=32)
    """concurrency is the maximum number of calls at the same time. Defaults to 4."""
    max_calls: int = Field(default=10_000, ge=1, le=10_000_000)
    """maxCalls is the budget of calls of a run, with retries. Answers beyond it get no score. Defaults to 10000."""


def is_grader_name(name: str) -> bool:
    """Return whether a metric can be that of a grader: whether the name is not reserved."""
    return (
        name[:1].islower()
        and name.isalnum()
        and name not in _RESERVED_NAMES
        and not name.startswith(_RESERVED_PREFIXES)
    )


def list_item_fields(graders: list[Grader]) -> list[str]:
    """Return the columns of the data that the graders read, sorted: `x` of `{{item.x}}` and `{{item.x.y}}`."""
    fields: set[str] = set()
    for grader in graders:
        if grader.http:
            fields.update(grader.http.item_fields)
        for _, value in grader.settings:
            if isinstance(value, str) and value.startswith("{{") and value.strip("{} ").startswith("item."):
                fields.add(value.strip("{} ").split(".")[1])
    return sorted(fields)
