"""From a FineTuneJob's YAML file, or the pod's environment, to a `TrainerConfig`; every mistake in one message.

The rules are the API server's own: types and limits from the contract's fields, the rest from its CEL strings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode

from finetune_trainer.contract import CONFIG_ENV, DNS_LABEL_PATTERN, JOB_NAME_MAX_LENGTH, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

API_GROUP = "finetune.dev/"
KIND = "FineTuneJob"

_FieldPath = tuple[str | int, ...]
_CLEARER = {"extra_forbidden": "there is no such field", "missing": "this field is required"}
_TEXT_REQUIRED = "text is required: quote it"
_NAMES = {"name": ("a FineTuneJob", JOB_NAME_MAX_LENGTH), "namespace": ("a namespace", 63)}
"""Of what a field of the metadata is the name, and how long it may be."""


class _Constructor(RoundTripConstructor):
    """Plain values only, each with its line. Dates are text as written, as they are for kubectl."""

    def construct_text(self, node: ScalarNode) -> str:
        """The scalar as it is written."""
        return str(node.value)


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_text)


def load(path: Path) -> TrainerConfig:
    """Read and check the manifest at `path`. Raises `CONFIG_INVALID` with one line per mistake."""
    document = _read(path)
    wrong = [_with_line(document, *each) for each in _wrong_names(document["metadata"])]
    try:
        config = TrainerConfig.from_manifest({**document, "metadata": {}} if wrong else document)
    except ValidationError as error:
        wrong += [_with_line(document, ("spec", *where), why) for where, why in _mistakes(error)]
        raise _invalid(str(path), wrong) from error
    broken = wrong + [_with_line(document, ("spec", *where), why) for where, why in broken_rules(config)]
    if broken:
        raise _invalid(str(path), broken)
    return config


def workers(path: Path) -> int:
    """How many processes train together in the cluster: one for each GPU, or one in each pod without GPUs."""
    compute = _read(path)["spec"].get("compute")
    nodes, gpus = (compute.get(name, 1) if isinstance(compute, dict) else 1 for name in ("nodes", "gpusPerNode"))
    return max(nodes, 1) * max(gpus, 1) if isinstance(nodes, int) and isinstance(gpus, int) else 1


def from_environment() -> TrainerConfig:
    """The config that the operator put into the pod."""
    text = os.environ.get(CONFIG_ENV)
    if not text:
        message = f"{CONFIG_ENV} is not set; name a manifest (finetune-trainer run job.yaml)"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    try:
        config = TrainerConfig.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(CONFIG_ENV, [_line(("spec", *where), why) for where, why in _mistakes(error)]) from error
    broken = [_line(("spec", *where), why) for where, why in broken_rules(config)]
    if broken:
        raise _invalid(CONFIG_ENV, broken)
    return config


def broken_rules(model: BaseModel, path: _FieldPath = ()) -> Iterator[tuple[_FieldPath, str]]:
    """The CEL rules of the model and of all below it that do not hold."""
    itself = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for rule in _rules(type(model)):
        program = cel.compile(rule["rule"])
        # A rule about a change has nothing to compare with here.
        if "oldSelf" not in program.variables() and program.execute({"self": itself}) is not True:
            yield path, rule["message"]
    for name, field in type(model).model_fields.items():
        yield from _broken_below(model.__dict__[name], (*path, field.alias or name))


def _rules(model: type[BaseModel]) -> list[dict[str, str]]:
    extra = model.model_config.get("json_schema_extra")
    rules: Any = extra.get("x-kubernetes-validations") if isinstance(extra, dict) else None
    return rules or []


def _broken_below(value: object, path: _FieldPath) -> Iterator[tuple[_FieldPath, str]]:
    if isinstance(value, BaseModel):
        yield from broken_rules(value, path)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _broken_below(each, (*path, index))


def _read(path: Path) -> CommentedMap:
    try:
        yaml = YAML(typ="rt")
        yaml.Constructor = _Constructor
        documents = [each for each in yaml.load_all(path.read_text()) if each is not None]
    except OSError as error:
        raise _invalid(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise _invalid(str(path), ["is no UTF-8 text"]) from error
    except YAMLError as error:
        raise _invalid(str(path), [_yaml_mistake(error)]) from error
    if len(documents) != 1:
        raise _invalid(str(path), [f"holds {len(documents)} YAML documents; one {KIND} is wanted"])
    return _job(path, documents[0])


def _job(path: Path, document: object) -> CommentedMap:
    if not isinstance(document, CommentedMap):
        raise _invalid(str(path), [f"is no {KIND}: it holds no mapping"])
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind != KIND or not str(version).startswith(API_GROUP):
        raise _invalid(str(path), [f"is no {KIND} of {API_GROUP}…: kind {kind}, apiVersion {version}"])
    for key in ("metadata", "spec"):
        if not isinstance(document.get(key), CommentedMap):
            raise _invalid(str(path), [f"{key}: a mapping is required"])
    return document


def _yaml_mistake(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"is no YAML: {error}"
    return f"is no YAML: {error.problem} (line {error.problem_mark.line + 1})"


def _wrong_names(metadata: CommentedMap) -> Iterator[tuple[_FieldPath, str]]:
    if "name" not in metadata:
        yield ("metadata", "name"), "this field is required: give it a name; generateName works in the API server only"
    for field, (owner, longest) in _NAMES.items():
        if field in metadata and (why := _why_no_name(metadata[field], owner, longest)):
            yield ("metadata", field), why


def _why_no_name(name: object, owner: str, longest: int) -> str | None:
    if not isinstance(name, str):
        return (_TEXT_REQUIRED if isinstance(name, int | float | None) else "text is required") + _shown(name)
    if len(name) <= longest and re.fullmatch(DNS_LABEL_PATTERN, name):
        return None
    return (
        f"the name of {owner} has 1 to {longest} characters of a-z, 0-9 and '-', no dots, and starts and ends with a "
        f"letter or digit{_shown(name)}"
    )


def _mistakes(error: ValidationError) -> Iterator[tuple[_FieldPath, str]]:
    for each in error.errors(include_url=False):
        if each["type"] in _CLEARER:
            yield each["loc"], _CLEARER[each["type"]]
            continue
        unquoted = each["type"] == "string_type" and isinstance(each["input"], int | float | None)
        yield each["loc"], (_TEXT_REQUIRED if unquoted else each["msg"]) + _shown(each["input"])


def _shown(given: object) -> str:
    """The value, if it is short: text in quotes, else as YAML writes it."""
    if given is not None and not isinstance(given, str | int | float):
        return ""
    text = repr(given) if isinstance(given, str) else json.dumps(given)
    return f" (it is {text})" if len(text) <= 80 else ""


def _line(path: _FieldPath, message: str) -> str:
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{name.removeprefix('.')}: {message}"


def _with_line(document: CommentedMap, path: _FieldPath, message: str) -> str:
    """The same with the line of the innermost part of the path that the file has."""
    node: Any = document
    line: int | None = None
    for part in path:
        if isinstance(node, CommentedMap) and part in node:
            line = node.lc.key(part)[0]
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line = node.lc.item(part)[0]
        else:
            break
        node = node[part]
    return _line(path, message) + (f" (line {line + 1})" if line is not None else "")


def _invalid(where: str, mistakes: list[str]) -> TrainerError:
    separator = "\n  " if len(mistakes) > 1 else " "
    return TrainerError(Reason.CONFIG_INVALID, f"{where}:{separator}" + "\n  ".join(mistakes))
