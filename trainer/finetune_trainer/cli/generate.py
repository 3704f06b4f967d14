"""`finetune-trainer generate`: the base model's answers beside the adapter's, to see what was learnt."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from finetune_trainer.contract import ModelSource, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import base_model
from finetune_trainer.records.manifest import MANIFEST_NAME, AdapterManifest
from finetune_trainer.storage import OUTPUT, S3, Location, check_space, download, find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What to ask whom. Model and adapter are URIs or local folders."""

    model: str
    revision: str | None
    adapter: str | None
    prompts: Sequence[str]
    max_new_tokens: int
    storage: Storage


@dataclass(frozen=True)
class Answer:
    """To one prompt."""

    prompt: str
    base: str
    adapted: str | None

    def to_text(self) -> str:
        """For people."""
        lines = [f"prompt:  {self.prompt}", f"base:    {self.base}"]
        return "\n".join(lines if self.adapted is None else [*lines, f"adapter: {self.adapted}"])

    def to_json(self) -> str:
        """One line, for programs."""
        fields = {"prompt": self.prompt, "base": self.base, "adapter": self.adapted}
        return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False)


def answer(question: Question, scratch: Path) -> list[Answer]:
    """Ask the base model and, if there is one, the model with the adapter."""
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        adapter = _adapter(question, folder / "adapter")
        model = _model(question, _revision(question, adapter), folder / "model")

        from finetune_trainer.inputs import model_files
        from finetune_trainer.modeling import generate

        model_files.check_model_dir(model)
        base = generate.generate(model, None, question.prompts, question.max_new_tokens)
        adapted: Sequence[str | None] = [None] * len(base)
        if adapter is not None:
            adapted = generate.generate(model, adapter, question.prompts, question.max_new_tokens)
        return [Answer(*each) for each in zip(question.prompts, base, adapted, strict=True)]


def _model(question: Question, revision: str | None, target: Path) -> Path:
    if "://" not in question.model:
        return _local(question.model, Reason.MODEL_NOT_FOUND)
    found = base_model.locate(ModelSource(uri=question.model, revision=revision), S3(question.storage))
    check_space(target.parent, found.size)
    return found.fetch(target, _uncounted).folder


def _adapter(question: Question, target: Path) -> Path | None:
    if question.adapter is None:
        return None
    if "://" not in question.adapter:
        return _local(question.adapter, Reason.DATA_NOT_FOUND)
    if not question.adapter.startswith("s3://"):
        message = f"{question.adapter}: an adapter is a local folder or an s3:// prefix"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    s3 = S3(question.storage)
    objects = [each for each in find(s3, Location.folder(question.adapter), OUTPUT) if not each.name.startswith(".")]
    files = download(s3, objects, target, OUTPUT, _uncounted)
    digests = {file.path.relative_to(target).as_posix(): file.sha256 for file in files}
    _verify(question.adapter, target, digests)
    return target


def _verify(uri: str, folder: Path, digests: dict[str, str]) -> None:
    """A result is what its manifest says it is."""
    if not (folder / MANIFEST_NAME).is_file():
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri} holds no finished result: it has no {MANIFEST_NAME}")
    for file in _manifest(folder).files:
        if digests.get(file.path) != file.sha256:
            raise TrainerError(Reason.STORAGE_CORRUPT, f"{uri}/{file.path} is not what {MANIFEST_NAME} says it is")


def _revision(question: Question, adapter: Path | None) -> str | None:
    """Of a hub model, the commit that the adapter was made for, unless one is asked for."""
    if question.revision or not question.model.startswith("hf://") or adapter is None:
        return question.revision
    return _manifest(adapter).model.revision if (adapter / MANIFEST_NAME).is_file() else None


def _manifest(adapter: Path) -> AdapterManifest:
    try:
        return AdapterManifest.model_validate_json((adapter / MANIFEST_NAME).read_bytes())
    except ValidationError as error:
        raise TrainerError(Reason.DATA_INVALID, f"{adapter / MANIFEST_NAME} cannot be understood") from error


def _local(path: str, missing: Reason) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise TrainerError(missing, f"{path} is no folder and no URI")
    return folder


def _uncounted(_: int) -> None:
    """Nobody watches this download."""
