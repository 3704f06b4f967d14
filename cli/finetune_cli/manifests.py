"""Manifests: reading them from files, and checking them as the API server does, without one."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.comments import CommentedMap

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_operator.api import API_VERSION, GROUP, KIND, FineTuneJobSpec
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneScheduleSpec
from finetune_operator.api.sweep import SWEEP_KIND, FineTuneSweepSpec
from finetune_operator.api.template import OWNER_NAME_MAX_LENGTH
from finetune_trainer.config.documents import DocumentError, parse_documents, to_plain
from finetune_trainer.config.loader import (
    FieldPath,
    describe_invalid_name,
    find_broken_rules,
    format_line,
    format_problem,
    list_validation_problems,
)
from finetune_trainer.contract import JOB_NAME_MAX_LENGTH

STDIN = "-"
_MAX_MANIFEST_BYTES = 8 * 2**20
_NAMESPACE_MAX_LENGTH = 63


@dataclass(frozen=True)
class _Kind:
    spec: type[FineTuneJobSpec | FineTuneScheduleSpec | FineTuneSweepSpec]
    name_max_length: int


KINDS = {
    KIND: _Kind(FineTuneJobSpec, JOB_NAME_MAX_LENGTH),
    SCHEDULE_KIND: _Kind(FineTuneScheduleSpec, OWNER_NAME_MAX_LENGTH),
    SWEEP_KIND: _Kind(FineTuneSweepSpec, OWNER_NAME_MAX_LENGTH),
}
"""Kinds that can be checked and submitted."""


_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_QUALIFIED_NAME = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_LABEL_VALUE = re.compile(f"({_NAME})?")


@dataclass(frozen=True)
class Manifest:
    """A YAML document of a file."""

    source: str
    """Name of the file in messages."""
    document: CommentedMap

    @property
    def kind(self) -> str:
        """Kind of the object, or an empty string."""
        return str(self.document.get("kind") or "")

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata, or an empty mapping."""
        metadata = self.document.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def is_checked(self) -> bool:
        """Whether the document is for this operator. Objects of other groups in the same file are not checked."""
        is_own_group = str(self.document.get("apiVersion") or "").startswith(f"{GROUP}/")
        return is_own_group or self.kind in KINDS or not self.kind

    def with_name(self, name: str) -> Manifest:
        """Return the manifest with another name of its object."""
        document = copy.deepcopy(self.document)  # with its line numbers
        if not isinstance(document.get("metadata"), CommentedMap):
            document["metadata"] = CommentedMap()
        document["metadata"].pop("generateName", None)
        document["metadata"]["name"] = name
        return Manifest(self.source, document)

    def to_body(self) -> dict[str, Any]:
        """Return the document as plain values."""
        body = to_plain(self.document)
        return body if isinstance(body, dict) else {}


def read_manifests(file: str) -> list[Manifest]:
    """Read the documents of a file, or of stdin for `-`. Raises `CommandError` with the exit status of bad input."""
    source = "stdin" if file == STDIN else file
    return _parse_manifests(_read_text(file, source), source)


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse the text of one manifest. `source` names it in messages."""
    return _parse_manifests(text, source)[0]


def read_single_manifest(file: str) -> Manifest:
    """Read a file with exactly one object of this operator."""
    manifests = read_manifests(file)
    if len(manifests) != 1:
        count = len(manifests)
        message = f"{manifests[0].source}: contains {count} YAML documents, expected one; kubectl apply takes them all"
        raise CommandError(message, EXIT_USAGE)
    return manifests[0]


def find_problems(manifest: Manifest) -> list[str]:
    """Return one line for each mistake: unknown fields, types, limits and rules, with the line number in the file.

    They are the mistakes that the API server would find, also for an installation without a cluster at hand.
    """
    problems = list(_find_header_problems(manifest)) or list(_find_problems(manifest))
    return [
        f"{manifest.source}: {format_problem(path, message)}{format_line(manifest.document, path)}"
        for path, message in problems
    ]


def _parse_manifests(text: str, source: str) -> list[Manifest]:
    try:
        documents = parse_documents(text)
        for document in documents:
            to_plain(document)
    except DocumentError as error:
        raise CommandError(f"{source}: {error}", EXIT_USAGE) from None
    manifests = [Manifest(source, document) for document in documents if isinstance(document, CommentedMap)]
    if len(manifests) < max(len(documents), 1):
        what = "a document is not a mapping" if documents else "contains no YAML document"
        raise CommandError(f"{source}: {what}", EXIT_USAGE)
    return manifests


def _read_text(file: str, source: str) -> str:
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(_MAX_MANIFEST_BYTES + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{source}: cannot be read: {error.strerror}", EXIT_USAGE) from None
    if len(content) > _MAX_MANIFEST_BYTES:
        raise CommandError(f"{source}: is larger than 8 MiB, which no manifest is", EXIT_USAGE)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CommandError(f"{source}: is not UTF-8 text", EXIT_USAGE) from None


def _find_header_problems(manifest: Manifest) -> Iterator[tuple[FieldPath, str]]:
    """Yield the mistakes outside of the spec that make it impossible to check the spec."""
    if manifest.kind not in KINDS:
        yield ("kind",), f"must be {', '.join(KINDS)} (it is {manifest.kind!r})"
    version = manifest.document.get("apiVersion")
    if version != API_VERSION:
        yield ("apiVersion",), f"must be {API_VERSION} (it is {version!r})"
    for section in ("metadata", "spec"):
        if not isinstance(manifest.document.get(section), CommentedMap):
            yield (section,), "a mapping is required"


def _find_problems(manifest: Manifest) -> Iterator[tuple[FieldPath, str]]:
    for field in manifest.document:
        if field not in ("apiVersion", "kind", "metadata", "spec", "status"):
            yield (field,), "there is no such field"
    yield from _find_metadata_problems(manifest)
    try:
        spec = KINDS[manifest.kind].spec.model_validate(manifest.to_body()["spec"])
    except ValidationError as error:
        problems: Sequence[tuple[FieldPath, str]] = list(list_validation_problems(error))
    else:
        problems = list(find_broken_rules(spec))
    for path, message in problems:
        yield ("spec", *path), message


def _find_metadata_problems(manifest: Manifest) -> Iterator[tuple[FieldPath, str]]:
    metadata, kind = manifest.metadata, manifest.kind
    if "name" not in metadata and "generateName" not in metadata:
        yield ("metadata", "name"), "this field is required"
    limits = {"name": (f"a {kind}", KINDS[kind].name_max_length), "namespace": ("a namespace", _NAMESPACE_MAX_LENGTH)}
    for field, (owner, max_length) in limits.items():
        if field in metadata and (problem := describe_invalid_name(metadata[field], owner, max_length)):
            yield ("metadata", field), problem
    for field, pattern in (("labels", _LABEL_VALUE), ("annotations", None)):
        yield from _find_map_problems(field, metadata.get(field), pattern)


def _find_map_problems(field: str, values: object, pattern: re.Pattern[str] | None) -> Iterator[tuple[FieldPath, str]]:
    """Yield the mistakes of labels or annotations, by the rules of Kubernetes. `pattern` is that of the values."""
    if not isinstance(values, dict | None):
        yield ("metadata", field), "a mapping is required"
        return
    for key, value in (values or {}).items():
        path = ("metadata", field, str(key))
        if not _QUALIFIED_NAME.fullmatch(str(key)):
            yield path, "a key is NAME or DOMAIN/NAME of at most 63 characters: a-z, A-Z, 0-9, '-', '_' and '.'"
        if not isinstance(value, str):
            yield path, f"must be text: put it in quotes (it is {value!r})"
        elif pattern and not pattern.fullmatch(value):
            yield path, f"has at most 63 characters: a-z, A-Z, 0-9, '-', '_' and '.' (it is {value[:80]!r})"
