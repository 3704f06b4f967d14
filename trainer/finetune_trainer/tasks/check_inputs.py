"""Lists the inputs of a run that does not exist yet, and compares them with those of a result. Downloads nothing.

Files in S3 are identified by their ETags, and files on the hub by their commits. A volume has neither, so that its
files are read and hashed as in a run.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from finetune_trainer.contract import CheckInputsTask, DataSource, InputsReport, ModelSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_bytes, pluralize
from finetune_trainer.inputs import data_sources
from finetune_trainer.inputs.base_model import BaseModelSource, VolumeModelSource, resolve_model
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    AdapterManifest,
    InputRecord,
    ModelRecord,
    compute_digest,
)
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.tasks.result_inputs import compare_files, has_source, parse_hub_uri, select_data_records

log = logging.getLogger(__name__)

_HUB_SCHEME = "hf://"


@dataclass(frozen=True)
class _ListedModel:
    """A base model, and what identifies its content."""

    source: BaseModelSource
    identity: list[str]

    def matches(self, record: ModelRecord) -> bool:
        if isinstance(self.source, VolumeModelSource):  # its files are not read a second time
            return record.revision in self.identity
        return self.source.matches(record)


@dataclass(frozen=True)
class _ListedData:
    """The data files of all sources.

    Which files the subset and split of a dataset have, only the `datasets` library knows, which task pods do not have.
    Therefore a source that is a repository of the hub counts as all of its files.
    """

    files: list[InputRecord]
    """Files of the other sources."""
    repository_files: list[InputRecord]
    repository_sources: list[DataSource]

    @property
    def all_files(self) -> list[InputRecord]:
        return [*self.files, *self.repository_files]

    @cached_property
    def commits(self) -> set[tuple[str, str]]:
        """The repositories, as `hf://datasets/OWNER/NAME`, with their commits."""
        return _find_commits(self.repository_files)

    @cached_property
    def _repositories(self) -> set[str]:
        return {repository for repository, _ in self.commits}

    def is_in_repository(self, record: InputRecord) -> bool:
        """Return whether a file is in one of the repositories, at any commit."""
        file = parse_hub_uri(record.uri)
        return file is not None and file.repository in self._repositories

    def matches(self, manifest: AdapterManifest, earlier: list[InputRecord]) -> bool:
        """Return whether these are the files of a result, and repositories have the same commits."""
        earlier_files = [record for record in earlier if not self.is_in_repository(record)]
        earlier_repository_files = [record for record in earlier if self.is_in_repository(record)]
        return (
            _sort_records(self.files) == _sort_records(earlier_files)
            and self.commits == _find_commits(earlier_repository_files)
            and all(has_source(manifest, source) for source in self.repository_sources)
        )


def check_inputs(s3: S3, task: CheckInputsTask) -> InputsReport:
    """List model and data, and compare them with the result of the task, if there is one.

    Raises the errors of a run whose inputs do not exist or cannot be read.
    """
    model = _list_model(s3, task)
    data = _list_data(s3, task)
    report = InputsReport(
        digest=_compute_inputs_digest(model, data),
        files=len(data.all_files),
        bytes=sum(record.size for record in data.all_files),
        has_result=False,
    )
    manifest = _read_result(s3, task)
    return report.model_copy(update=_compare(manifest, model, data)) if manifest else report


def format_report(report: InputsReport) -> str:
    """Describe a report in one sentence."""
    files = f"{pluralize(report.files, 'data file')} ({format_bytes(report.bytes)})"
    if not report.has_result:
        return f"{files}; there is no result to compare with"
    if report.unchanged:
        return f"{files}; model and data are those of the last result"
    removed = f"{pluralize(report.removed_files, 'file')} removed or replaced"
    model = "; the base model is another one" if report.model_changed else ""
    return f"{files}; since the last result {format_bytes(report.added_bytes)} added and {removed}{model}"


def _list_model(s3: S3, task: CheckInputsTask) -> _ListedModel:
    source = resolve_model(ModelSource(uri=task.model_uri, revision=task.model_revision), s3)
    if isinstance(source, VolumeModelSource):
        return _ListedModel(source, [source.compute_revision()])
    return _ListedModel(source, source.identity)


def _list_data(s3: S3, task: CheckInputsTask) -> _ListedData:
    repositories = [source for source in task.sources if _is_repository(source)]
    listings = [
        data_sources.list_data(source, s3, task.output_uri) for source in task.sources if source not in repositories
    ]
    # Several sources are often splits of one repository.
    repository_uris = dict.fromkeys(source.uri for source in repositories)
    return _ListedData(
        files=[record for listing in listings for record in listing.list_records()],
        repository_files=[record for uri in repository_uris for record in _list_repository(uri)],
        repository_sources=repositories,
    )


def _is_repository(source: DataSource) -> bool:
    if not source.uri.startswith(_HUB_SCHEME):
        return False
    from finetune_trainer.inputs import hub_datasets  # its client is imported only if it is used

    return not hub_datasets.has_path(source)


def _list_repository(uri: str) -> list[InputRecord]:
    from finetune_trainer.inputs import hub_datasets

    return hub_datasets.list_repository(DataSource(uri=uri)).list_records()


def _read_result(s3: S3, task: CheckInputsTask) -> AdapterManifest | None:
    if task.result_uri is None:
        return None
    location = Location.parse_folder(task.result_uri).child(MANIFEST_NAME)
    content = read_object(s3, location)
    if content is None or (task.result_digest and compute_digest(content) != task.result_digest):
        log.info("inputs: %s is not the manifest of the last result", location)
        return None
    try:
        return AdapterManifest.model_validate_json(content)
    except ValidationError:
        log.warning("inputs: %s cannot be read by this version", location)
        return None


def _compare(manifest: AdapterManifest, model: _ListedModel, data: _ListedData) -> dict[str, bool | int]:
    """Return the fields of the report that compare the inputs with those of a result."""
    earlier = [record.without_sha256() for record in select_data_records(manifest)]
    change = compare_files(_complete_repositories(earlier, data), data.all_files)
    model_changed = not model.matches(manifest.model)
    return {
        "has_result": True,
        "unchanged": not model_changed and data.matches(manifest, earlier),
        "added_bytes": change.added_bytes,
        "removed_files": change.removed_files,
        "model_changed": model_changed,
    }


def _complete_repositories(earlier: list[InputRecord], data: _ListedData) -> list[InputRecord]:
    """Replace the files of a subset and split by all files of the repository at the commit of the result."""
    in_repositories = [record for record in earlier if data.is_in_repository(record)]
    files = [record for record in earlier if not data.is_in_repository(record)]
    for repository, commit in sorted(_find_commits(in_repositories)):
        folder = f"{repository}@{commit}/"
        recorded, listed = _select_below(folder, in_repositories), _select_below(folder, data.repository_files)
        files += listed or _list_commit(folder) or recorded
    return files


def _select_below(folder: str, records: list[InputRecord]) -> list[InputRecord]:
    return [record for record in records if record.uri.startswith(folder)]


def _list_commit(folder: str) -> list[InputRecord]:
    """Return all files of a repository at the commit of a result, none if the commit is gone."""
    try:
        return _list_repository(folder.rstrip("/"))
    except TrainerError as error:
        if error.reason is not Reason.DATA_NOT_FOUND:
            raise
        return []


def _find_commits(records: list[InputRecord]) -> set[tuple[str, str]]:
    """Return the repositories of files on the hub, with the commits of the files."""
    files = (parse_hub_uri(record.uri) for record in records)
    return {(file.repository, file.commit) for file in files if file}


def _sort_records(records: list[InputRecord]) -> list[tuple[str, str, int]]:
    return sorted((record.uri, record.etag, record.size) for record in records)


def _compute_inputs_digest(model: _ListedModel, data: _ListedData) -> str:
    files = [f"{uri} {size} {etag}" for uri, etag, size in _sort_records(data.all_files)]
    return "sha256:" + hashlib.sha256("\n".join([*model.identity, *files]).encode()).hexdigest()
