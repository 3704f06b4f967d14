"""Finds the adapter that a request names, in S3, and provides its verified files on disk. Needs no inference server."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, ValidationError

from finetune_serving.settings import LOGGER_NAME, NAME_PLACEHOLDER, ResolverSettings
from finetune_trainer.contract import Model, Reason, Servable, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_reader import read_alias
from finetune_trainer.publishing.alias_signature import load_public_key
from finetune_trainer.publishing.result_download import download_files, list_adapter_files
from finetune_trainer.publishing.signing import SIGNATURE_NAME
from finetune_trainer.records.manifest import MANIFEST_NAME, FileRecord, compute_digest
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.text import to_one_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

log = logging.getLogger(LOGGER_NAME)

ALIAS_NAME = "champion.json"
"""Name of the alias of a schedule below the prefix of its name."""
_CONFIG_NAME, _WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_OBJECT_NAME = rf"(?=[^@]{{1,253}}(@|$)){_LABEL}(\.{_LABEL})*"
_REQUEST = re.compile(rf"(?P<name>{_OBJECT_NAME})(@(?P<run>{_OBJECT_NAME}))?")
"""`NAME` or `NAME@RUN`, both names of Kubernetes objects. They have no slash, and no empty part between dots."""
_MAX_LOGGED = 200
_FOLDER_LENGTH = 32


class NotResolvedError(Exception):
    """The request names no adapter that may be loaded. The message says why."""


class _ServableRecord(Model):
    """The part of a manifest that says which servers load the adapter."""

    model_config = ConfigDict(extra="ignore")

    servable: Servable | None = None


@dataclass(frozen=True)
class _Result:
    """A published result that a request names."""

    prefix: Location
    manifest: bytes

    @property
    def digest(self) -> str:
        return compute_digest(self.manifest)


class AdapterResolver:
    """Provides adapters by name. Safe to use from several threads; several processes may share the cache."""

    def __init__(self, settings: ResolverSettings, s3: S3 | None = None) -> None:
        self.settings = settings
        self._s3 = s3 or S3(Storage(endpoint=settings.endpoint))
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def resolve(self, base_model: str, request: str) -> Path | None:
        """Return the folder of the adapter that a request names, or None with one line in the log.

        `base_model` is the name of the model that the server serves.
        """
        try:
            result = self._find_result(request)
            with self._locks[result.digest]:
                folder = self._provide(result)
            self._check_adapter(folder, self.settings.base_model or base_model)
        except (NotResolvedError, TrainerError, OSError) as error:
            message = error.message if isinstance(error, TrainerError) else str(error)
            log.warning("adapter %s is not loaded: %s", to_one_line(request, _MAX_LOGGED), to_one_line(message))
            return None
        log.info("adapter %s is %s of %s", request, result.digest, result.prefix)
        return folder

    def _find_result(self, request: str) -> _Result:
        """Return the result of a request: that of the run, the one that the alias names, or the one at the prefix."""
        match = _REQUEST.fullmatch(request)
        if match is None:
            raise NotResolvedError("it is not NAME or NAME@RUN, with names of Kubernetes objects")
        name, run = match["name"], match["run"]
        if self.settings.allowed is not None and name not in self.settings.allowed:
            raise NotResolvedError("its name is not allowed; add it to FINETUNE_LORA_ALLOWED")
        prefix = Location.parse_folder(self.settings.prefix.replace(NAME_PLACEHOLDER, name))
        if run:
            return self._read_result(prefix.child(f"{run}/"), None)
        alias = read_alias(self._s3, prefix.child(ALIAS_NAME), self._key)
        if alias is None:
            return self._read_result(prefix, None)
        champion = Location.parse_folder(alias.adapter_uri)
        if champion.bucket != prefix.bucket or not champion.key.startswith(prefix.key) or ".." in champion.key:
            raise NotResolvedError(f"its alias names {champion}, which is not below {prefix}")
        return self._read_result(champion, alias.digest)

    def _read_result(self, prefix: Location, digest: str | None) -> _Result:
        """Return the result at a prefix, which must have this digest unless it is None."""
        location = prefix.child(MANIFEST_NAME)
        manifest = read_object(self._s3, location)
        if manifest is None:
            raise NotResolvedError(f"{location} does not exist; publish the result, or check FINETUNE_LORA_PREFIX")
        result = _Result(prefix, manifest)
        if digest not in (None, result.digest):
            raise NotResolvedError(f"{location} has the digest {result.digest}, but the alias names {digest}")
        return result

    def _provide(self, result: _Result) -> Path:
        """Return the folder of a result in the cache. It appears there complete and verified."""
        suffix = "-signed" if self.settings.public_key else ""
        folder = self.settings.cache_dir / (result.digest.removeprefix("sha256:")[:_FOLDER_LENGTH] + suffix)
        if folder.is_dir():
            return folder
        files = self._select_files(result)
        self.settings.cache_dir.mkdir(parents=True, exist_ok=True)
        self._check_size(files)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self.settings.cache_dir) as name:
            partial = Path(name) / "adapter"
            partial.mkdir()
            download_files(self._s3, result.prefix, files, partial)
            (partial / MANIFEST_NAME).write_bytes(result.manifest)
            self._verify_signature(result, partial)
            _rename_unless_exists(partial, folder)
        return folder

    def _select_files(self, result: _Result) -> Sequence[FileRecord]:
        """Return the files to download: all that are signed, or only those that servers load."""
        self._check_servable(result)
        files = list_adapter_files(result.prefix, result.manifest)
        needed = [file for file in files if self.settings.public_key or file.path in (_CONFIG_NAME, _WEIGHTS_NAME)]
        if not {_CONFIG_NAME, _WEIGHTS_NAME} <= {file.path for file in needed}:
            raise NotResolvedError(f"its manifest lists no {_CONFIG_NAME} or no {_WEIGHTS_NAME}")
        if any(file.size < 0 for file in needed):
            raise NotResolvedError("its manifest lists a negative size")
        return needed

    def _check_servable(self, result: _Result) -> None:
        """Raise if the trainer has found that vLLM does not load the adapter. Older manifests do not say."""
        try:
            servable = _ServableRecord.model_validate_json(result.manifest).servable
        except ValidationError:
            return
        if servable and servable.vllm.startswith("No"):
            raise NotResolvedError(servable.vllm)

    def _check_size(self, files: Sequence[FileRecord]) -> None:
        cached = sum(path.stat().st_size for path in self.settings.cache_dir.rglob("*") if path.is_file())
        needed = sum(file.size for file in files)
        if cached + needed > self.settings.max_cache_bytes:
            raise NotResolvedError(
                f"its {needed} bytes do not fit into the cache, which has {cached} of {self.settings.max_cache_bytes}; "
                "raise FINETUNE_LORA_MAX_CACHE_BYTES or restart with an empty cache"
            )

    @cached_property
    def _key(self) -> EllipticCurvePublicKey | None:
        return load_public_key(self.settings.public_key) if self.settings.public_key else None

    def _verify_signature(self, result: _Result, folder: Path) -> None:
        """Raise unless the key has signed exactly the files in the folder."""
        if self.settings.public_key is None:
            return
        signature = read_object(self._s3, result.prefix.child(SIGNATURE_NAME))
        if signature is None:
            raise NotResolvedError(f"{result.prefix} is not signed")
        (folder / SIGNATURE_NAME).write_bytes(signature)
        verify_folder(folder, self.settings.public_key)

    def _check_adapter(self, folder: Path, base_model: str) -> None:
        """Raise unless the adapter is for the base model that is served, with a rank that the server accepts."""
        try:
            config = json.loads((folder / _CONFIG_NAME).read_bytes())
            found, ranks = (
                config["base_model_name_or_path"],
                [config["r"], *(config.get("rank_pattern") or {}).values()],
            )
            rank = max(int(each) for each in ranks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotResolvedError(f"its {_CONFIG_NAME} is invalid") from error
        if found != base_model:
            raise NotResolvedError(
                f"it was trained on {found}, but {base_model} is served; if they are the same, set "
                "FINETUNE_LORA_BASE_MODEL"
            )
        if rank > self.settings.max_rank:
            limits = f"{self.settings.max_rank}; raise --max-lora-rank and FINETUNE_LORA_MAX_RANK"
            raise NotResolvedError(f"its rank {rank} is above {limits}")


def verify_folder(folder: Path, public_key: Path) -> None:
    """Raise `NotResolvedError` unless the signature in a folder is that of the key for all other files in it."""
    from model_signing import hashing, verifying

    signature = folder / SIGNATURE_NAME
    hashing_config = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.set_hashing_config(hashing_config).verify(folder, signature)
    except (ValueError, KeyError, TypeError) as error:
        raise NotResolvedError(f"its signature was not made with the key {public_key.name} for these files") from error


def _rename_unless_exists(partial: Path, folder: Path) -> None:
    """Rename a complete folder. If another process was faster, its folder has the same files."""
    try:
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise TrainerError(Reason.DISK_FULL, f"{folder} cannot be written: {error.strerror}") from error
        shutil.rmtree(partial)
