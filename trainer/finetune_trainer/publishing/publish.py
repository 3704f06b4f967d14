"""The output of a run: finds an existing result, holds the lock, and publishes files with the manifest last.

The adapter is a complete result. The merged model is published after it, in `merged/`, with a manifest of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.checkpoints.store import CheckpointProvenance, CheckpointStore
from finetune_trainer.config.run_id import get_run_id
from finetune_trainer.contract import Outcome, Reason, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.resolve import ResolvedInputs
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.gguf_output import GGUF_ATTEMPTS_NAME, GgufOutput
from finetune_trainer.publishing.merged_output import MERGE_ATTEMPTS_NAME, MergedOutput
from finetune_trainer.publishing.output_lock import OutputLock, remove_own_lock
from finetune_trainer.publishing.published_result import PublishedResult, download_merged
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.findings import FINDINGS_NAME
from finetune_trainer.records.gguf import GGUF_PREFIX, list_gguf_names
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    MERGED_PREFIX,
    REPORT_NAME,
    AdapterManifest,
    FileRecord,
    compute_digest,
    get_installed_versions,
)
from finetune_trainer.storage import S3, Location, delete_objects, put_if_absent, read_object
from finetune_trainer.storage.retry import MANIFEST_ATTEMPTS, retry_until_true
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.run_log import LOG_NAME

log = logging.getLogger(__name__)

CONFIG_NAME = "finetune_config.json"
"""The config of the run. Not `config.json`, which loaders would take as the config of a full model."""
REJECTED_PREFIX = ".rejected/"
"""Prefix of reports of models that did not pass `evaluation.gate`, by config digest."""
FAILED_PREFIX = ".failed/"
"""Prefix of logs and findings of runs that failed, by config digest."""
_MAX_NAMES_SHOWN = 3


class OutputPrefix:
    """The prefix in S3 to which a run publishes its result."""

    def __init__(self, s3: S3, config: TrainerConfig) -> None:
        self._s3 = s3
        self._config = config
        self._prefix = Location.parse_folder(config.output.uri)
        self.uri = config.output.uri.rstrip("/")
        self.digest = _compute_run_digest(config)
        """Digest of config and number of ranks, which identifies the results of this run."""
        self._uploads = Uploads(s3, self._prefix, self.digest)

    @contextmanager
    def hold_lock(self, progress: ProgressReporter) -> Iterator[OutputLock]:
        """Hold the lock on the output in the block. Every upload first checks that it is still held.

        Raises for a missing bucket or missing write permission at once, not only after the training.
        """
        output_lock = OutputLock(self._s3, self._prefix, get_run_id(), self.digest)
        output_lock.acquire(progress)
        self._uploads.check_lock = output_lock.check_held
        try:
            yield output_lock
        finally:
            # Also after SIGTERM, so that another run with this output need not wait until the lock is stale.
            output_lock.release()

    def checkpoint_store(
        self, data_digest: str, model_revision: str, template_date: date | None = None
    ) -> CheckpointStore:
        """Return the store of checkpoints of this run with these inputs, and this date in its rows."""
        versions = get_installed_versions()
        provenance = CheckpointProvenance(self.digest, data_digest, model_revision, versions, template_date)
        return CheckpointStore(self._s3, self._prefix, provenance, self._config.training.checkpoints.keep)

    def remove_leftovers(self) -> None:
        """Remove what attempts of this config left behind before one published. Failures are only logged."""
        try:
            self._uploads.remove_record()
            delete_objects(self._s3, [self._prefix.child(name) for name in self._list_attempts_names()])
            remove_own_lock(self._s3, self._prefix, get_run_id(), self.digest)
            self._remove_failed()
        except TrainerError as error:
            log.warning("publish: could not remove everything of an earlier attempt: %s", error.message)
        self.clear_checkpoints()

    def _list_attempts_names(self) -> list[str]:
        output = self._config.output
        merged_names = [MERGE_ATTEMPTS_NAME] if output.merged else []
        return [*merged_names, *([GGUF_ATTEMPTS_NAME] if output.gguf != "none" else [])]

    def find_template_date(self) -> date | None:
        """Return the date that the rows of an earlier attempt have, if it has left a checkpoint."""
        return self.checkpoint_store("", "").find_template_date()

    def clear_checkpoints(self) -> None:
        """Remove the checkpoints of this run, whose result is published. Failures are only logged."""
        try:
            self.checkpoint_store("", "").clear()
        except TrainerError as error:
            log.warning("publish: could not remove all checkpoints: %s", error.message)

    def find_published(self) -> PublishedResult | None:
        """Return the published result of this config, if any. Raises `OUTPUT_EXISTS` for any other result."""
        content = read_object(self._s3, self._prefix.child(MANIFEST_NAME))
        if content is None:
            return None
        try:
            manifest = AdapterManifest.model_validate_json(content)
        except ValidationError as error:
            raise self._output_exists_error("a manifest.json that this trainer did not write or cannot read") from error
        if manifest.config_digest != self.digest:
            raise self._output_exists_error(f"the result of another config, published {manifest.created_at}")
        if self._config.output.signing and read_object(self._s3, self._prefix.child(signing.SIGNATURE_NAME)) is None:
            raise self._output_exists_error(f"an unsigned result of this config, published {manifest.created_at}")
        return PublishedResult(
            manifest, content, self._find_merged_uri(manifest, content), self._find_gguf_uri(compute_digest(content))
        )

    def _find_merged_uri(self, manifest: AdapterManifest, content: bytes) -> str | None:
        if not self._config.output.merged:
            return None
        merged_output = self.merged_output(compute_digest(content))
        return merged_output.uri if manifest.has_merged_model or merged_output.is_complete() else None

    def _find_gguf_uri(self, adapter_digest: str) -> str | None:
        """Return the URI of the GGUF files that `output.gguf` requests, if they are complete."""
        gguf_type = self._config.output.gguf
        if gguf_type == "none":
            return None
        gguf_output = self.gguf_output(adapter_digest)
        return gguf_output.uri if gguf_output.is_complete(gguf_type, list_gguf_names(self._config)) else None

    def gguf_output(self, adapter_digest: str) -> GgufOutput:
        """Return the output of the GGUF files of the adapter whose manifest has this digest."""
        return GgufOutput(self._s3, self._prefix, self._uploads, adapter_digest, self._config.output.signing)

    def lacks_gguf_files(self, published: PublishedResult) -> bool:
        """Return whether the published result lacks GGUF files that `output.gguf` requests."""
        return self._config.output.gguf != "none" and published.gguf_uri is None

    def download_merged(self, target: Path) -> Path:
        """Download the published merged model to `target`, which is returned."""
        return download_merged(self._s3, self._prefix, target)

    def merged_output(self, adapter_digest: str) -> MergedOutput:
        """Return the output of the merged model of the adapter whose manifest has this digest."""
        return MergedOutput(self._s3, self._prefix, self._uploads, adapter_digest, self._config.output.signing)

    def lacks_merged_model(self, published: PublishedResult) -> bool:
        """Return whether `output.merged` is set and the published result has no merged model."""
        return self._config.output.merged and published.merged_uri is None

    def check_foreign_files(self) -> None:
        """Raise `OUTPUT_EXISTS` if publishing might replace files that no attempt of this config has uploaded."""
        output = self._config.output
        folders = ["", *([MERGED_PREFIX] if output.merged else []), *([GGUF_PREFIX] if output.gguf != "none" else [])]
        names = [name for folder in folders for name in self._uploads.list_foreign_files(folder)]
        if names:
            message = (
                f"{self.uri} contains files that this run has not published ({_summarize_names(names)}); "
                "they are never overwritten"
            )
            raise TrainerError(Reason.OUTPUT_EXISTS, f"{message}: change output.uri or remove them")

    def download_adapter(self, published: PublishedResult, target: Path) -> Path:
        """Download the files of the published adapter to `target`, which is returned."""
        return published.download_adapter(self._s3, self._prefix, target)

    def download_result(self, published: PublishedResult, target: Path) -> Path:
        """Download all files of the published result but the merged model to `target`, which is returned."""
        return published.download_result(self._s3, self._prefix, target)

    def check_inputs(self, published: PublishedResult, resolved: ResolvedInputs) -> None:
        """Raise `INPUTS_CHANGED` unless the published result was trained on the current inputs."""
        if not resolved.matches(published.manifest.model, published.manifest.inputs):
            message = (
                f"{self.uri} contains the result of this config of {published.manifest.created_at}, but model or data "
                "have changed since then; change output.uri to train on the new inputs"
            )
            raise TrainerError(Reason.INPUTS_CHANGED, message)

    def publish(self, folder: Path, manifest: AdapterManifest) -> Outcome:
        """Upload the files of `folder`, then the manifest, which completes the result. Fills in `manifest.files`.

        The signature covers all these files and the manifest, so the manifest does not list it.
        """
        (folder / CONFIG_NAME).write_bytes(json.dumps(self._config.to_json(), indent=2).encode() + b"\n")
        paths = [(path, path.relative_to(folder).as_posix()) for path in _sort_for_upload(folder)]
        published = self._announce_unless_published([FileRecord.from_path(path, name) for path, name in paths])
        if published:  # another attempt was faster: keep its files as its manifest lists them
            return published.to_outcome(self.uri)
        files = [self._uploads.upload_file(path, name) for path, name in paths]
        new_result = PublishedResult.from_manifest(manifest.model_copy(update={"files": files}))
        if self._config.output.signing:
            (folder / MANIFEST_NAME).write_bytes(new_result.content)
            signature = signing.sign_folder(folder, self._config.output.signing)
            files = [*files, self._uploads.announce_and_upload(signature, signing.SIGNATURE_NAME)]
        self._uploads.verify(files)
        final_outcome = self._put_manifest(new_result)
        self._uploads.try_remove_record()
        self._try_remove_failed()
        total_bytes = sum(file.size for file in files)
        log.info("publish: %d files, %d bytes, at %s: %s", len(files), total_bytes, self.uri, final_outcome.reason)
        return final_outcome

    def _announce_unless_published(self, files: list[FileRecord]) -> PublishedResult | None:
        """Record the files to upload, unless a result is published. Raises `OUTPUT_EXISTS` for files of others."""
        published = self.find_published()
        if published:
            return published
        try:
            self.check_foreign_files()
        except TrainerError:
            published = self.find_published()  # published meanwhile, so these are files of that result
            if published:
                return published
            raise
        self._uploads.announce(files)
        return None

    def store_rejected_report(self, folder: Path) -> str:
        """Upload the report of a model that is not published. Returns the URI of the report."""
        report_prefix = self._get_own_folder(REJECTED_PREFIX)
        for path in sorted(folder.iterdir()):
            self._uploads.upload_file(path, report_prefix + path.name)
        return f"{self.uri}/{report_prefix}{REPORT_NAME}"

    def store_evidence(self, prefix: str, contents: Mapping[str, bytes]) -> str:
        """Upload files to the folder of this config below `prefix`. They replace those of an earlier attempt.

        Returns the URI of the folder, with a slash at its end.
        """
        folder = self._get_own_folder(prefix)
        for name, content in contents.items():
            self._uploads.upload_content(content, folder + name)
        return f"{self.uri}/{folder}"

    def _get_own_folder(self, prefix: str) -> str:
        return f"{prefix}{self.digest.removeprefix('sha256:')[:12]}/"

    def _remove_failed(self) -> None:
        """Remove log and findings of failed attempts, since the result is published."""
        folder = self._get_own_folder(FAILED_PREFIX)
        delete_objects(self._s3, [self._prefix.child(folder + name) for name in (FINDINGS_NAME, LOG_NAME)])

    def _try_remove_failed(self) -> None:
        try:
            self._remove_failed()
        except TrainerError as error:
            log.warning("publish: could not remove the log of a failed attempt: %s", error.message)

    def _put_manifest(self, new_result: PublishedResult) -> Outcome:
        self._uploads.check_lock()
        outcome = retry_until_true(partial(self._try_put_manifest, new_result), MANIFEST_ATTEMPTS)
        if outcome is None:
            message = f"{self._prefix.child(MANIFEST_NAME)}: the store rejects the manifest, but has none"
            raise TrainerError(Reason.STORAGE_UNREACHABLE, message)
        return outcome

    def _try_put_manifest(self, new_result: PublishedResult) -> Outcome | None:
        """Return the outcome of the result that is there now; None if the write was rejected and there is none."""
        if put_if_absent(self._s3, self._prefix.child(MANIFEST_NAME), new_result.content):
            return self._build_completed_outcome(new_result)
        published = self.find_published()
        if published and published.content == new_result.content:  # ours: the response to a first attempt was lost
            return self._build_completed_outcome(new_result)
        return published.to_outcome(self.uri) if published else None

    def _build_completed_outcome(self, new_result: PublishedResult) -> Outcome:
        return Outcome(
            reason=Reason.COMPLETED,
            message=f"published at {self.uri}",
            backend=new_result.manifest.backend,
            dataset=new_result.manifest.dataset,
            result=new_result.manifest.to_result(self.uri, new_result.content),
            log_uri=new_result.get_log_uri(self.uri),
        )

    def _output_exists_error(self, description: str) -> TrainerError:
        message = f"{self.uri} contains {description}; it is never overwritten: change output.uri or remove it"
        return TrainerError(Reason.OUTPUT_EXISTS, message)


def _summarize_names(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    hidden_count = len(names) - _MAX_NAMES_SHOWN
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + (f" and {hidden_count} more" if hidden_count > 0 else "")


def _compute_run_digest(config: TrainerConfig) -> str:
    """Return the digest of config and number of ranks: each rank adds a batch to every step, so results differ.

    With `globalBatchSize`, the rows of a step do not depend on the number of ranks.
    """
    world_size = max(topology.world_size(), topology.topology_from_env().world_size)
    if world_size == 1 or config.training.global_batch_size is not None:
        return config.digest()
    return "sha256:" + hashlib.sha256(f"{config.digest()} {world_size} workers".encode()).hexdigest()


def _sort_for_upload(folder: Path) -> list[Path]:
    """Return the files with weights first and `adapter_config.json`, which loaders look for, last."""

    def sort_key(path: Path) -> tuple[int, str]:
        is_last = path.name == "adapter_config.json"
        return (0 if path.suffix == ".safetensors" else 2 if is_last else 1, path.as_posix())

    return sorted((path for path in folder.rglob("*") if path.is_file()), key=sort_key)
