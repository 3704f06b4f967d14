"""`finetune-trainer generate`: compare completions of the base model and of the model with the adapter."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from finetune_trainer.contract import ModelSource, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import base_model
from finetune_trainer.records.gguf import GGUF_PREFIX
from finetune_trainer.records.manifest import MANIFEST_NAME, AdapterManifest
from finetune_trainer.storage import OUTPUT_ERRORS, S3, Location, check_disk_space, download_objects, find_objects

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateRequest:
    """Prompts and the models to complete them. Model and adapter are URIs or local folders."""

    model: str
    revision: str | None
    adapter: str | None
    prompts: Sequence[str]
    max_new_tokens: int
    storage: Storage


@dataclass(frozen=True)
class CompletionComparison:
    """The completions of one prompt."""

    prompt: str
    base_completion: str
    adapter_completion: str | None

    def to_text(self) -> str:
        """Return the comparison as lines of text."""
        lines = [f"prompt:  {self.prompt}", f"base:    {self.base_completion}"]
        return "\n".join(lines if self.adapter_completion is None else [*lines, f"adapter: {self.adapter_completion}"])

    def to_json(self) -> str:
        """Return the comparison as one line of JSON."""
        fields = {"prompt": self.prompt, "base": self.base_completion, "adapter": self.adapter_completion}
        return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False)


def compare_completions(request: GenerateRequest, scratch: Path) -> list[CompletionComparison]:
    """Complete the prompts with the base model and, if there is an adapter, with the adapter."""
    with fetch_models(request, scratch) as (model_dir, adapter_dir):
        from finetune_trainer.modeling.generation import generate_completions

        base_completions = generate_completions(model_dir, None, request.prompts, request.max_new_tokens)
        adapter_completions: Sequence[str | None] = [None] * len(base_completions)
        if adapter_dir is not None:
            adapter_completions = generate_completions(model_dir, adapter_dir, request.prompts, request.max_new_tokens)
        return [
            CompletionComparison(*row)
            for row in zip(request.prompts, base_completions, adapter_completions, strict=True)
        ]


@contextmanager
def fetch_models(request: GenerateRequest, scratch: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield the folders of the base model and of the adapter, which are downloaded to a temporary folder if needed."""
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as temporary_path:
        folder = Path(temporary_path)
        adapter_dir = _fetch_adapter(request, folder / "adapter")
        model_dir = _fetch_model(request, _choose_revision(request, adapter_dir), folder / "model")

        from finetune_trainer.inputs import model_files

        model_files.check_model_dir(model_dir)
        yield model_dir, adapter_dir


def _fetch_model(request: GenerateRequest, revision: str | None, target: Path) -> Path:
    if "://" not in request.model:
        return _resolve_local_folder(request.model, Reason.MODEL_NOT_FOUND)
    source = base_model.resolve_model(ModelSource(uri=request.model, revision=revision), S3(request.storage))
    check_disk_space(target.parent, {"base model": source.size})
    return base_model.fetch_model(source, target, _ignore_bytes).folder


def _fetch_adapter(request: GenerateRequest, target: Path) -> Path | None:
    if request.adapter is None:
        return None
    if "://" not in request.adapter:
        return _resolve_local_folder(request.adapter, Reason.DATA_NOT_FOUND)
    if not request.adapter.startswith("s3://"):
        message = f"{request.adapter}: expected a local folder or an s3:// prefix of an adapter"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    s3 = S3(request.storage)
    objects = [
        s3_object
        for s3_object in find_objects(s3, Location.parse_folder(request.adapter), OUTPUT_ERRORS)
        if not s3_object.name.startswith((".", GGUF_PREFIX))
    ]
    downloaded_files = download_objects(s3, objects, target, OUTPUT_ERRORS, _ignore_bytes)
    sha256_by_path = {file.path.relative_to(target).as_posix(): file.sha256 for file in downloaded_files}
    _verify_digests(request.adapter, target, sha256_by_path)
    return target


def _verify_digests(uri: str, folder: Path, sha256_by_path: dict[str, str]) -> None:
    """Raise unless the downloaded files have the digests that the manifest of the result lists."""
    if not (folder / MANIFEST_NAME).is_file():
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri} has no complete result: {MANIFEST_NAME} is missing")
    for file in _read_manifest(folder).files:
        if sha256_by_path.get(file.path) != file.sha256:
            raise TrainerError(
                Reason.STORAGE_CORRUPT, f"{uri}/{file.path} does not match its digest in {MANIFEST_NAME}"
            )


def _choose_revision(request: GenerateRequest, adapter_dir: Path | None) -> str | None:
    """Return the requested revision; for a hub model by default the commit that the adapter was trained on."""
    if request.revision or not request.model.startswith("hf://") or adapter_dir is None:
        return request.revision
    return _read_manifest(adapter_dir).model.revision if (adapter_dir / MANIFEST_NAME).is_file() else None


def _read_manifest(adapter_dir: Path) -> AdapterManifest:
    try:
        return AdapterManifest.model_validate_json((adapter_dir / MANIFEST_NAME).read_bytes())
    except ValidationError as error:
        raise TrainerError(Reason.DATA_INVALID, f"{adapter_dir / MANIFEST_NAME} is not a valid manifest") from error


def _resolve_local_folder(path: str, missing_reason: Reason) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise TrainerError(missing_reason, f"{path} is neither a folder nor a URI")
    return folder


def _ignore_bytes(_: int) -> None:
    """Discard the number of downloaded bytes."""
