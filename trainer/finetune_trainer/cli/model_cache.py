"""`finetune-trainer cache`: fill the model cache for the config of the pod, or list a cache."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from finetune_trainer.config import loader
from finetune_trainer.contract import MODEL_CACHE_DIR_ENV, CacheResult, Outcome, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.model_cache import cached_source, filling, listing
from finetune_trainer.inputs.model_cache.records import FillReport
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.termination_message import build_outcome

_REASONS_BY_ERRNO = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.DISK_FULL,
    errno.EACCES: Reason.ACCESS_DENIED,
    errno.EPERM: Reason.ACCESS_DENIED,
    errno.EROFS: Reason.ACCESS_DENIED,
}
"""Reasons of errors of the volume."""


def fill_for_pod() -> Outcome:
    """Fill the cache with the base model of the pod's config, and report the result to the trainer of the pod."""
    cache_dir = os.environ.get(MODEL_CACHE_DIR_ENV)
    if not cache_dir:
        raise TrainerError(Reason.CONFIG_INVALID, f"{MODEL_CACHE_DIR_ENV} is not set")
    report = _fill(loader.load_from_environment(), Path(cache_dir))
    report.write()
    return build_outcome(Reason.COMPLETED, f"{report.result}: {report.message}")


def report_miss(outcome: Outcome) -> Outcome:
    """Report to the trainer of the pod that the cache cannot be used, and why."""
    FillReport(result=CacheResult.MISS, message=f"{outcome.reason}: {outcome.message}").write()
    return outcome


def _fill(config: TrainerConfig, cache_dir: Path) -> FillReport:
    s3 = S3(config.storage)
    output = OutputPrefix(s3, config)
    published = output.find_published()
    if published and not output.lacks_merged_model(published):
        return FillReport(result=CacheResult.MISS, message="the result is published already")
    source = cached_source.get_cacheable(base_model.resolve_model(config.model, s3))
    if source is None:
        return FillReport(result=CacheResult.MISS, message=f"{config.model.uri} cannot be cached")
    try:
        return filling.fill_cache(cache_dir, source, config.model.uri)
    except OSError as error:
        reason = _REASONS_BY_ERRNO.get(error.errno or 0, Reason.STORAGE_UNREACHABLE)
        raise TrainerError(reason, f"{error.filename or cache_dir}: {error.strerror}") from error


def list_cache(args: argparse.Namespace) -> str:
    """Return the table of the entries of a cache."""
    if not args.directory.is_dir():
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.directory} is not a folder; name the root of the cache")
    return listing.format_entries(args.directory, listing.list_entries(args.directory))
