"""The beginning of a run: checks that need no download, and what surrounds all stages.

`resolve_run` checks secrets, settings, output and inputs. `open_run` holds the output lock, captures the log, tracks
the run and watches for stalls. Failures of both leave log and findings at the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer import input_preparation
from finetune_trainer.config.suspend_step import read_suspend_step
from finetune_trainer.context import RunContext
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.model_cache.cached_source import use_cache
from finetune_trainer.inputs.resolve import ResolvedInputs
from finetune_trainer.modeling import kernels
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.failure_evidence import FailureEvidence
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.run_log import capture_log
from finetune_trainer.telemetry.scratch_watch import watch_scratch
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.watchdog import stall_watchdog
from finetune_trainer.tracking import run_tracking

if TYPE_CHECKING:
    from finetune_trainer.publishing.published_result import PublishedResult


@dataclass(frozen=True)
class ResolvedRun:
    """A run whose secrets, output and inputs were checked. Nothing is downloaded yet."""

    inputs: ResolvedInputs
    output: OutputPrefix
    published: PublishedResult | None
    """The result of this config, if it is published already."""
    suspend_step: int | None = None
    """The optimizer step to stop at, or None to train to the end."""


def resolve_run(config: TrainerConfig) -> ResolvedRun:
    """Check secrets, settings and output, and list the inputs. Raises `TrainerError` for what cannot work."""
    if topology.is_rank_zero():
        _check_secrets(config)
    suspend_step = read_suspend_step(config)
    input_preparation.check_settings(config)
    kernels.check_gpu(config)
    s3 = S3(config.storage)
    output = OutputPrefix(s3, config)
    published = output.find_published()
    inputs = use_cache(resolve.resolve_inputs(config, s3))
    resolve.log_inputs(inputs)
    if published:
        output.check_inputs(published, inputs)
    return ResolvedRun(inputs, output, published, suspend_step)


def _check_secrets(config: TrainerConfig) -> None:
    """Raise `AUTH_FAILED` unless the secrets that are needed at the end of the run can be read."""
    if config.output.signing:
        signing.check_signing_key(config.output.signing)
    if config.tracking and config.tracking.tool != "tensorboard":
        run_tracking.read_credentials(config.tracking)


@contextmanager
def store_resolution_failure(config: TrainerConfig, scratch: Path, recorder: OutcomeRecorder) -> Iterator[None]:
    """Store log and findings at the output if the block, which calls `resolve_run`, fails. One process of the run does
    this, without the output lock, which is acquired later."""
    if not topology.is_rank_zero() or topology.topology_from_env().node_rank != 0:
        yield
        return
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        output = OutputPrefix(S3(config.storage), config)
        with capture_log(Path(folder)) as run_log, FailureEvidence(config, output, recorder, run_log):
            yield


@contextmanager
def open_run(resolved: ResolvedRun, scratch: Path, recorder: OutcomeRecorder) -> Iterator[RunContext]:
    """Hold the output lock, capture the log, track the run, and watch for stalls and a full scratch volume in the
    block.

    If the block fails, log and findings are stored at the output.
    """
    config, is_rank_zero = resolved.inputs.config, topology.is_rank_zero()
    with (
        resolved.output.hold_lock(recorder.progress) if is_rank_zero else nullcontext() as output_lock,
        _open_work_dir(scratch) as work_dir,
        capture_log(work_dir) if is_rank_zero else nullcontext() as run_log,
        FailureEvidence(config, resolved.output, recorder, run_log) if run_log else nullcontext() as evidence,
        run_tracking.track_run(config, resolved.output.digest, work_dir) as tracker,
        stall_watchdog(
            recorder,
            work_dir,
            config.training.stall_seconds,
            resolved.inputs.s3,
            evidence.store_stalled if evidence else None,
        ),
        watch_scratch(recorder, scratch, evidence.store_full if evidence else None)
        if topology.is_local_rank_zero()
        else nullcontext(),
        collectives.translate_peer_errors(),
    ):
        yield RunContext(config, work_dir, recorder, output_lock, run_log, tracker)


@contextmanager
def _open_work_dir(scratch: Path) -> Iterator[Path]:
    """Yield a new folder, or the one that the launcher has created for all ranks of its node."""
    shared_folder = topology.shared_folder()
    if shared_folder:
        yield shared_folder
        return
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
