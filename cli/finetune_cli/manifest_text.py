"""The text of a new manifest, with comments for its first reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from finetune_cli.commands.init import EXAMPLE_DATA, EXAMPLE_MODEL, EXAMPLE_OUTPUT, InitOptions, Method, Task
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE

_COMMENT_COLUMN = 44
_PLAIN_SCALAR = re.compile(r"[A-Za-z][A-Za-z0-9./:@_-]*[A-Za-z0-9/]")
_RESERVED = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
_METRICS = {
    Task.CHAT: "exactMatch and chrF of the answers to validation rows",
    Task.CLASSIFICATION: "accuracy, macro-F1 and confusion matrix",
    Task.SUMMARIZATION: "ROUGE of the summaries",
    Task.TRANSLATION: "BLEU and chrF of the translations",
    Task.GENERATION: "exactMatch and chrF of the texts",
}
_EXAMPLE_NOTE = "<- yours"
_REWARD_METHODS = (Method.GRPO, Method.RLOO)
_REWARD_LEARNING_RATE = 2e-5


def build_manifest_text(options: InitOptions, namespace: str | None, endpoint: str | None) -> str:
    """Return the YAML text of a FineTuneJob."""
    lines = [
        "# Check it with `finetune validate`, submit it with `finetune submit --wait` or `kubectl apply`.",
        "apiVersion: finetune.dev/v1alpha1",
        "kind: FineTuneJob",
        "metadata:",
        f"  name: {_quote(options.name)}",
        *([f"  namespace: {_quote(namespace)}"] if namespace else []),
        "spec:",
        *_build_model(options),
        *_build_dataset(options),
        *_build_training(options),
        "  output:",
        _comment(
            f"    uri: {_quote(options.output_uri)}", _note(options.output_uri, EXAMPLE_OUTPUT, "never overwritten")
        ),
        *_build_storage(options, endpoint),
        *_build_compute(options),
    ]
    return "\n".join(lines) + "\n"


def _build_model(options: InitOptions) -> Iterator[str]:
    yield "  model:"
    yield _comment(f"    uri: {_quote(_complete_hub_name(options.model))}", _note(options.model, EXAMPLE_MODEL))
    if options.revision:
        yield f"    revision: {_quote(options.revision)}"
    if options.hub_secret:
        yield "    tokenSecretRef:"
        yield _comment(f"      name: {_quote(options.hub_secret)}", "a Secret with the key HF_TOKEN")
    if options.max_length is not None:
        yield _comment(f"    maxLength: {options.max_length}", "tokens; longer rows are dropped and counted")
    if options.quantization:
        yield _comment(f"    quantization: {options.quantization}", "of the frozen base model in memory")


def _build_dataset(options: InitOptions) -> Iterator[str]:
    yield "  dataset:"
    yield "    sources:"
    for uri in options.data or [EXAMPLE_DATA]:
        yield _comment(f"      - uri: {_quote(uri)}", _note(uri, EXAMPLE_DATA))
    fraction = _parse_fraction(options.validation)
    if fraction == 0:
        return
    yield _comment("    validation:", "held-out rows, on which the model is measured")
    if fraction is not None:
        yield f"      fraction: {options.validation}"
    else:
        yield "      sources:"
        yield f"        - uri: {_quote(options.validation or '')}"


def _build_training(options: InitOptions) -> Iterator[str]:
    yield "  training:"
    if options.method in _REWARD_METHODS:
        yield from _build_rewards(options)
        return
    if options.method is not Method.SFT:
        yield _comment(f"    method: {options.method}", "needs rows with preferences")
    yield f"    epochs: {options.epochs}"
    if options.learning_rate is not None:
        yield f"    learningRate: {_format_number(options.learning_rate)}"
    has_task = options.method is Method.SFT and _parse_fraction(options.validation) != 0
    task = options.task or (Task.CHAT if has_task else None)
    if task:
        yield "  evaluation:"
        yield _comment(f"    task: {task}", _METRICS[task])


def _build_rewards(options: InitOptions) -> Iterator[str]:
    """Yield the training for a reward, and a grader that gives it."""
    yield _comment(f"    method: {options.method}", "learns from the rewards of its own answers")
    yield f"    epochs: {options.epochs}"
    yield f"    learningRate: {_format_number(options.learning_rate or _REWARD_LEARNING_RATE)}"
    yield _comment("    rewards: [{grader: answer}]", "one of the graders below")
    yield "  evaluation:"
    yield "    graders:"
    yield "      - name: answer"
    yield _comment("        stringCheck:", "equal to the answer of the data; see Judge answers your way in the docs")
    yield '          reference: "{{reference.output_text}}"'


def _build_storage(options: InitOptions, endpoint: str | None) -> Iterator[str]:
    if not (endpoint or options.region or options.secret):
        return
    yield "  storage:"
    if endpoint:
        yield _comment(f"    endpoint: {_quote(endpoint)}", "as the pods reach it")
    if options.region:
        yield f"    region: {_quote(options.region)}"
    if options.secret:
        yield "    credentialsSecretRef:"
        yield _comment(f"      name: {_quote(options.secret)}", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def _build_compute(options: InitOptions) -> Iterator[str]:
    yield "  compute:"
    if options.nodes != 1:
        yield f"    nodes: {options.nodes}"
    yield _comment(f"    gpusPerNode: {options.gpus}", "0 trains on the CPU")
    if options.memory:
        yield "    resources:"
        yield f"      requests: {{memory: {_quote(options.memory)}}}"
        yield f"      limits: {{memory: {_quote(options.memory)}}}"


def _parse_fraction(validation: str | None) -> float | None:
    """Return the fraction of rows that are held out, or None if the validation data is elsewhere."""
    try:
        fraction = float(validation or 0)
    except ValueError:
        return None
    if not 0 <= fraction < 1:
        raise CommandError("--validation must be a URI, or a fraction from 0 to 1", EXIT_USAGE)
    return fraction


def _complete_hub_name(model: str) -> str:
    """Return the URI of a model. `ORGANIZATION/NAME` is a model of the hub."""
    return f"hf://{model}" if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model) else model


def _format_number(value: float) -> str:
    """Return a number as all readers of YAML understand it: some take `1e-05` for text."""
    mantissa, exponent_mark, exponent = repr(value).partition("e")
    return f"{mantissa}{'' if '.' in mantissa or not exponent_mark else '.0'}{exponent_mark}{exponent}"


def _quote(text: str) -> str:
    """Return a text as a YAML scalar."""
    is_plain = _PLAIN_SCALAR.fullmatch(text) and ": " not in text and text.lower() not in _RESERVED
    return text if is_plain else json.dumps(text)


def _note(value: str, example: str, otherwise: str = "") -> str:
    return _EXAMPLE_NOTE if value == example else otherwise


def _comment(line: str, comment: str) -> str:
    return f"{line.ljust(_COMMENT_COLUMN)} # {comment}" if comment else line
