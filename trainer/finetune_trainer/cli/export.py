"""`finetune-trainer export`: convert a published result to GGUF files, in a folder or beside the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_trainer.config.run_id import get_run_id
from finetune_trainer.contract import GgufType, ModelSource, Reason, Storage, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import resolve_model
from finetune_trainer.publishing.gguf_converter import Converter, find_converters
from finetune_trainer.publishing.gguf_files import GgufSources, create_gguf_files, find_adapter_problem
from finetune_trainer.publishing.gguf_output import GgufOutput
from finetune_trainer.publishing.gguf_stage import describe_missing
from finetune_trainer.publishing.output_lock import OutputLock
from finetune_trainer.publishing.published_result import PublishedResult, download_merged
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    MERGED_PREFIX,
    AdapterManifest,
    FileRecord,
    MergedManifest,
    find_changed_path,
)
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from finetune_trainer.contract import Signing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportRequest:
    """A result, what to convert of it, and where to write the files."""

    result: str
    """S3 prefix, or a local folder with the files of a result."""
    gguf_type: GgufType
    parts: str
    """`adapter`, `merged`, or `all` for what the result has and llama.cpp can load."""
    target: Path | None
    """Folder for the files, or None to publish them below the result."""
    model: str | None
    """URI or folder of the base model, or None for that of the manifest."""
    storage: Storage


def export_result(request: ExportRequest, scratch: Path) -> str:
    """Convert the result. Returns where the files are.

    Raises `CONFIG_INVALID` for a target that is not empty and for a local result that is to be published, and
    `STORAGE_CORRUPT` if files of the result do not match its manifests.
    """
    if request.target is not None and request.target.exists() and any(request.target.iterdir()):
        raise TrainerError(Reason.CONFIG_INVALID, f"{request.target} is not empty: name a new folder with --to")
    if request.target is None and not request.result.startswith("s3://"):
        message = f"{request.result} is a local folder: name the folder for the GGUF files with --to DIR"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    converter = Converter(find_converters(), lambda: None)
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as name:
        work_dir = Path(name)
        published = _read_result(request)
        if request.target is None:
            return _publish(request, published, converter, work_dir)
        sources = _fetch_sources(request, published, work_dir)
        missing = create_gguf_files(sources, request.gguf_type, converter, work_dir / "gguf")
        request.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work_dir / "gguf", request.target, dirs_exist_ok=True)
        return f"{request.target}{describe_missing(missing)}"


def _read_result(request: ExportRequest) -> PublishedResult:
    if request.result.startswith("s3://"):
        content = read_object(S3(request.storage), Location.parse_folder(request.result).child(MANIFEST_NAME))
    else:
        path = Path(request.result).expanduser() / MANIFEST_NAME
        content = path.read_bytes() if path.is_file() else None
    if content is None:
        message = f"{request.result} has no complete result: {MANIFEST_NAME} is missing"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    try:
        return PublishedResult(AdapterManifest.model_validate_json(content), content)
    except ValidationError as error:
        message = f"{request.result}/{MANIFEST_NAME} is not the manifest of an adapter"
        raise TrainerError(Reason.DATA_INVALID, message) from error


def _publish(request: ExportRequest, published: PublishedResult, converter: Converter, work_dir: Path) -> str:
    """Publish the files under the lock of the output, as a run does."""
    s3, prefix = S3(request.storage), Location.parse_folder(request.result)
    with _hold_lock(s3, prefix, published.manifest.config_digest) as uploads:
        output = GgufOutput(s3, prefix, uploads, published.digest, _get_signing(published))
        output.check_vacant()
        sources = _fetch_sources(request, published, work_dir)
        missing = create_gguf_files(sources, request.gguf_type, converter, work_dir / "gguf")
        output.publish(work_dir / "gguf", request.gguf_type, missing)
        return f"{output.uri}{describe_missing(missing)}"


@contextmanager
def _hold_lock(s3: S3, prefix: Location, config_digest: str) -> Iterator[Uploads]:
    uploads = Uploads(s3, prefix, config_digest)
    output_lock = OutputLock(s3, prefix, get_run_id(), config_digest)
    output_lock.acquire(ProgressReporter())
    uploads.check_lock = output_lock.check_held
    try:
        yield uploads
    finally:
        output_lock.release()


def _get_signing(published: PublishedResult) -> Signing | None:
    """Return how the result is signed: its GGUF files are signed with the same key."""
    return TrainerConfig.model_validate(published.manifest.config).output.signing


def _fetch_sources(request: ExportRequest, published: PublishedResult, work_dir: Path) -> GgufSources:
    adapter_dir = _fetch_adapter(request, published, work_dir / "adapter")
    merged_dir = None if request.parts == "adapter" else _fetch_merged(request, work_dir / "merged")
    problem = find_adapter_problem(adapter_dir)
    if problem and (request.parts == "adapter" or merged_dir is None):
        raise TrainerError(Reason.MODEL_UNSUPPORTED, problem)
    if request.parts == "merged" or problem:
        return GgufSources(None, adapter_dir, merged_dir)
    return GgufSources(adapter_dir, _fetch_base(request, published, work_dir / "base"), merged_dir)


def _fetch_adapter(request: ExportRequest, published: PublishedResult, target: Path) -> Path:
    if request.result.startswith("s3://"):
        return published.download_result(S3(request.storage), Location.parse_folder(request.result), target)
    folder = Path(request.result).expanduser()
    _check_files(folder, [file for file in published.manifest.files if "/" not in file.path])
    return folder


def _fetch_merged(request: ExportRequest, target: Path) -> Path | None:
    """Return the folder of the merged model. None: the result has none, and `parts` does not ask for it."""
    try:
        if request.result.startswith("s3://"):
            return download_merged(S3(request.storage), Location.parse_folder(request.result), target)
        return _find_local_merged(Path(request.result).expanduser() / MERGED_PREFIX)
    except TrainerError as error:
        if error.reason is not Reason.MODEL_NOT_FOUND or request.parts == "merged":
            raise
        return None


def _find_local_merged(folder: Path) -> Path:
    if not (folder / MANIFEST_NAME).is_file():
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{folder} has no complete merged model")
    _check_files(folder, MergedManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes()).files)
    return folder


def _check_files(folder: Path, files: list[FileRecord]) -> None:
    changed = find_changed_path(folder, files)
    if changed:
        message = f"{folder / changed} does not match its digest in {MANIFEST_NAME}"
        raise TrainerError(Reason.STORAGE_CORRUPT, message)


def _fetch_base(request: ExportRequest, published: PublishedResult, target: Path) -> Path:
    """Provide the settings of the base model. No weights are downloaded."""
    record = published.manifest.model
    if request.model and "://" not in request.model:
        folder = Path(request.model).expanduser()
        if not folder.is_dir():
            raise TrainerError(Reason.MODEL_NOT_FOUND, f"{request.model} is neither a folder nor a URI")
        return folder
    uri = request.model or record.uri
    revision = record.revision if uri.startswith("hf://") and uri == record.uri else None
    source = resolve_model(ModelSource(uri=uri, revision=revision), S3(request.storage))
    return source.fetch_settings(target, lambda _: None).folder
