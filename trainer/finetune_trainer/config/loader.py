"""Loads a `TrainerConfig` from the YAML file of a FineTuneJob or from the environment of the pod.

One message reports all mistakes. The rules are those of the API server: types and limits of the contract's fields, and
the CEL rules of its models, which are evaluated here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import cel
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from finetune_trainer.config.documents import DocumentError, read_documents
from finetune_trainer.contract import (
    CONFIG_ENV,
    DNS_LABEL_PATTERN,
    JOB_NAME_MAX_LENGTH,
    QUANTITY_PATTERN,
    Reason,
    TrainerConfig,
    join_parts,
    parse_quantity,
)
from finetune_trainer.errors import TrainerError

API_GROUP = "finetune.dev/"
KIND = "FineTuneJob"
OWNER_KINDS = ("FineTuneSchedule", "FineTuneSweep")
"""Kinds whose objects have a template of FineTuneJobs."""

FieldPath = tuple[str | int, ...]
"""Names of fields and indices of items, from the root of a manifest."""
_RUN_SPEC: FieldPath = ("spec",)
_OWNER_TEMPLATE: FieldPath = ("spec", "template", "spec")
ModelT = TypeVar("ModelT", bound=BaseModel)
_CLEARER_MESSAGES = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is required",
    "model_type": "a mapping is required",
}
_TEXT_REQUIRED = "text is required: quote it"
_METADATA_NAMES = {"name": ("a FineTuneJob", JOB_NAME_MAX_LENGTH), "namespace": ("a namespace", 63)}
"""What a field of the metadata names, and its maximum length."""


def load_manifest(path: Path) -> TrainerConfig:
    """Load and validate the manifest at `path`. Raises `CONFIG_INVALID` with one line per mistake."""
    return _load_document(path, _read_job_document(path))


def load_template(path: Path) -> TrainerConfig:
    """Load and validate a FineTuneJob, or the template of a FineTuneSchedule or a FineTuneSweep.

    Raises `CONFIG_INVALID` with one line per mistake.
    """
    return _load_document(path, _read_template(path), _OWNER_TEMPLATE if read_owner(path) else _RUN_SPEC)


def _load_document(path: Path, document: CommentedMap, section: FieldPath = _RUN_SPEC) -> TrainerConfig:
    """Validate the FineTuneJob of a file. `section` is the path of its spec in the file."""
    _resolve_local_paths(document["spec"])
    problems = [
        format_problem(field_path, problem) + format_line(document, field_path)
        for field_path, problem in _find_invalid_names(document["metadata"])
    ]
    try:
        config = TrainerConfig.from_manifest({**document, "metadata": {}} if problems else document)
    except ValidationError as error:
        problems += [
            format_problem((*section, *field_path), problem) + format_line(document, ("spec", *field_path))
            for field_path, problem in list_validation_problems(error)
        ]
        raise _config_invalid_error(str(path), problems) from error
    all_problems = problems + [
        format_problem((*section, *field_path), problem) + format_line(document, ("spec", *field_path))
        for field_path, problem in find_broken_rules(config)
    ]
    if all_problems:
        raise _config_invalid_error(str(path), all_problems)
    return config


def _resolve_local_paths(spec: CommentedMap) -> None:
    """Replace paths of data sources and of the model, relative to the working directory, by file URIs.

    A name such as `a/b` may be a path of data, but is the name of a model on the hub.
    """
    dataset, model, evaluation = (spec.get(name) for name in ("dataset", "model", "evaluation"))
    validation = dataset.get("validation") if isinstance(dataset, CommentedMap) else None
    test = evaluation.get("test") if isinstance(evaluation, CommentedMap) else None
    for section in (dataset, validation, test):
        sources = section.get("sources") if isinstance(section, CommentedMap) else None
        for source in sources if isinstance(sources, CommentedSeq) else ():
            _replace_path(source)
    if isinstance(model, CommentedMap) and str(model.get("uri")).startswith((".", "/", "~")):
        _replace_path(model)


def _replace_path(section: object) -> None:
    uri = section.get("uri") if isinstance(section, CommentedMap) else None
    if isinstance(section, CommentedMap) and isinstance(uri, str) and uri and "://" not in uri:
        path = os.path.abspath(os.path.expanduser(uri))
        section["uri"] = f"file://{path}/" if uri.endswith("/") and path != "/" else f"file://{path}"


def read_world_size(path: Path) -> int:
    """Return the number of ranks in the cluster: one per GPU, or one per pod without GPUs."""
    compute = _read_template(path)["spec"].get("compute")
    nodes, gpus = (compute.get(name, 1) if isinstance(compute, dict) else 1 for name in ("nodes", "gpusPerNode"))
    return max(nodes, 1) * max(gpus, 1) if isinstance(nodes, int) and isinstance(gpus, int) else 1


def read_sharding(path: Path) -> bool:
    """Return whether the ranks share the base model: `compute.sharding` is `full`."""
    compute = _read_template(path)["spec"].get("compute")
    return isinstance(compute, dict) and compute.get("sharding") == "full"


def read_scratch_size(path: Path) -> int | None:
    """Return `compute.scratch.size` in bytes, or None if the manifest does not set it."""
    compute = _read_template(path)["spec"].get("compute")
    scratch = compute.get("scratch") if isinstance(compute, dict) else None
    size = scratch.get("size") if isinstance(scratch, dict) else None
    return int(parse_quantity(str(size))) if re.fullmatch(QUANTITY_PATTERN, str(size)) else None


def read_job_name(path: Path) -> str:
    """Return the name of the manifest, as `namespace/name` if it has a namespace."""
    metadata = _read_job_document(path)["metadata"]
    return "/".join(str(metadata[field]) for field in ("namespace", "name") if field in metadata)


def read_config_text() -> str:
    """Return the config that the operator sets in the pod, as JSON. It is empty if there is none."""
    return join_parts(os.environ, CONFIG_ENV)


def load_from_environment() -> TrainerConfig:
    """Load the config that the operator sets in the pod. Raises `CONFIG_INVALID` with one line per mistake."""
    text = read_config_text()
    if not text:
        message = f"{CONFIG_ENV} is not set; pass a manifest (finetune-trainer run job.yaml)"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    try:
        config = TrainerConfig.model_validate_json(text)
    except ValidationError as error:
        raise _config_invalid_error(
            CONFIG_ENV,
            [format_problem(("spec", *field_path), problem) for field_path, problem in list_validation_problems(error)],
        ) from error
    problems = [format_problem(("spec", *field_path), problem) for field_path, problem in find_broken_rules(config)]
    if problems:
        raise _config_invalid_error(CONFIG_ENV, problems)
    return config


def parse_section(kind: type[ModelT], section: object, path: FieldPath) -> ModelT:
    """Parse a part of a manifest from plain values. Raises `CONFIG_INVALID` with one line per mistake."""
    try:
        model, problems = kind.model_validate(section), list[tuple[FieldPath, str]]()
    except ValidationError as error:
        model, problems = None, list(list_validation_problems(error))
    if model:
        problems = list(find_broken_rules(model))
    if problems or model is None:
        lines = [format_problem((*path, *field_path), problem) for field_path, problem in problems]
        raise _config_invalid_error("the manifest is not valid", lines)
    return model


def find_broken_rules(model: BaseModel, path: FieldPath = ()) -> Iterator[tuple[FieldPath, str]]:
    """Yield path and message of each CEL rule that the model, or a model inside it, violates, and of repeated items."""
    document = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for rule in _get_cel_rules(type(model)):
        program = cel.compile(rule["rule"])
        # A transition rule (`oldSelf`) has no old value here.
        if "oldSelf" not in program.variables() and program.execute({"self": document}) is not True:
            yield path, _read_message(rule, document)
    for name, field in type(model).model_fields.items():
        field_path, value = (*path, field.alias or name), model.__dict__[name]
        yield from _find_repeated_items(field, value, field_path)
        yield from _find_broken_rules_below(value, field_path)


def _find_repeated_items(field: FieldInfo, value: object, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """Yield a message for each repeated item of a list whose items must differ, as a whole or in a key."""
    extra = field.json_schema_extra
    if not isinstance(value, list) or not isinstance(extra, dict) or "x-kubernetes-list-type" not in extra:
        return
    keys: Any = extra.get("x-kubernetes-list-map-keys", [])
    items = [item.model_dump(include=set(keys)) if isinstance(item, BaseModel) else item for item in value]
    for index, item in enumerate(items):
        if item in items[:index]:
            named = f" ({', '.join(map(str, item.values()))})" if isinstance(item, dict) else _format_value(item)
            yield (*path, index), f"is in the list twice{named}"


def _read_message(rule: dict[str, str], document: dict[str, Any]) -> str:
    if "messageExpression" not in rule:
        return rule["message"]
    return str(cel.evaluate(rule["messageExpression"], {"self": document}))


def _get_cel_rules(model: type[BaseModel]) -> list[dict[str, str]]:
    extra = model.model_config.get("json_schema_extra")
    rules: Any = extra.get("x-kubernetes-validations") if isinstance(extra, dict) else None
    return rules or []


def _find_broken_rules_below(value: object, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    if isinstance(value, BaseModel):
        yield from find_broken_rules(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_broken_rules_below(item, (*path, index))


def read_owner(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Return the kind and the spec of a FineTuneSchedule or a FineTuneSweep, or None for another manifest."""
    document = _read_document(path)
    if not isinstance(document, CommentedMap) or document.get("kind") not in OWNER_KINDS:
        return None
    spec = document.get("spec")
    if not isinstance(spec, CommentedMap):
        raise _config_invalid_error(str(path), ["spec: a mapping is required"])
    plain: dict[str, Any] = json.loads(json.dumps(spec))
    return str(document["kind"]), plain


def _read_template(path: Path) -> CommentedMap:
    """Return the FineTuneJob at `path`, or that of the template of a FineTuneSchedule or a FineTuneSweep."""
    document = _read_document(path)
    if not isinstance(document, CommentedMap) or document.get("kind") not in OWNER_KINDS:
        return _check_job_document(path, document)
    spec = document.get("spec")
    template = spec.get("template") if isinstance(spec, CommentedMap) else None
    if not isinstance(template, CommentedMap) or not isinstance(template.get("spec"), CommentedMap):
        raise _config_invalid_error(str(path), ["spec.template.spec: a mapping is required"])
    document["kind"], document["spec"] = KIND, template["spec"]  # in place, to keep the line numbers
    return _check_job_document(path, document)


def _read_job_document(path: Path) -> CommentedMap:
    return _check_job_document(path, _read_document(path))


def _read_document(path: Path) -> object:
    try:
        documents = read_documents(path)
    except DocumentError as error:
        raise _config_invalid_error(str(path), [str(error)]) from error
    if len(documents) != 1:
        raise _config_invalid_error(
            str(path), [f"contains {len(documents)} YAML documents, expected exactly one {KIND}"]
        )
    return documents[0]


def _check_job_document(path: Path, document: object) -> CommentedMap:
    if not isinstance(document, CommentedMap):
        raise _config_invalid_error(str(path), [f"is not a {KIND}: it is not a mapping"])
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind != KIND or not str(version).startswith(API_GROUP):
        raise _config_invalid_error(str(path), [f"is not a {KIND} of {API_GROUP}…: kind {kind}, apiVersion {version}"])
    for key in ("metadata", "spec"):
        if not isinstance(document.get(key), CommentedMap):
            raise _config_invalid_error(str(path), [f"{key}: a mapping is required"])
    return document


def _find_invalid_names(metadata: CommentedMap) -> Iterator[tuple[FieldPath, str]]:
    if "name" not in metadata:
        yield ("metadata", "name"), "this field is required: set a name; generateName works only in the API server"
    for field, (owner, max_length) in _METADATA_NAMES.items():
        if field in metadata and (problem := describe_invalid_name(metadata[field], owner, max_length)):
            yield ("metadata", field), problem


def describe_invalid_name(name: object, owner: str, max_length: int) -> str | None:
    """Return what is wrong with the name of an object, or None. `owner` is what it names."""
    if not isinstance(name, str):
        return (_TEXT_REQUIRED if isinstance(name, int | float | None) else "text is required") + _format_value(name)
    if len(name) <= max_length and re.fullmatch(DNS_LABEL_PATTERN, name):
        return None
    return (
        f"the name of {owner} must have 1 to {max_length} characters of a-z, 0-9 and '-', no dots, and start and "
        f"end with a letter or digit{_format_value(name)}"
    )


def list_validation_problems(error: ValidationError) -> Iterator[tuple[FieldPath, str]]:
    """Yield path and message of each mistake that pydantic has found."""
    for detail in error.errors(include_url=False):
        if detail["type"] in _CLEARER_MESSAGES:
            yield detail["loc"], _CLEARER_MESSAGES[detail["type"]]
            continue
        is_unquoted = detail["type"] == "string_type" and isinstance(detail["input"], int | float | None)
        yield detail["loc"], (_TEXT_REQUIRED if is_unquoted else detail["msg"]) + _format_value(detail["input"])


def _format_value(value: object) -> str:
    """Return the value for a message, if it is short: text in quotes, anything else as in YAML."""
    if value is not None and not isinstance(value, str | int | float):
        return ""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return f" (it is {text})" if len(text) <= 80 else ""


def format_problem(path: FieldPath, message: str) -> str:
    """Return one line about a field."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{name.removeprefix('.')}: {message}"


def format_line(document: CommentedMap, path: FieldPath) -> str:
    """Format the line of the innermost part of the path that is in the file."""
    node: Any = document
    line: int | None = None
    for part in path:
        is_key = isinstance(node, CommentedMap) and part in node
        if not is_key and not (isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node)):
            break
        # What was not read from the file, such as a name of the command line, has no position.
        position = (node.lc.data or {}).get(part)
        line = position[0] if position else line
        node = node[part]
    return f" (line {line + 1})" if line is not None else ""


def _config_invalid_error(source: str, problems: list[str]) -> TrainerError:
    separator = "\n  " if len(problems) > 1 else " "
    return TrainerError(Reason.CONFIG_INVALID, f"{source}:{separator}" + "\n  ".join(problems))
