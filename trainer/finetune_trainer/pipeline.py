"""A run, top to bottom: data and base model in, adapter out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, Outcome, Reason, Stage, TrainerConfig
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.resolve import DownloadedInputs, ResolvedInputs
from finetune_trainer.publishing import merge_stage, publish, signing
from finetune_trainer.publishing.output_lock import OutputLock
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import AdapterManifest, InputRecord, ModelRecord, get_installed_versions
from finetune_trainer.storage import S3
from finetune_trainer.telemetry import run_log, termination_message
from finetune_trainer.telemetry.progress import current_timestamp
from finetune_trainer.telemetry.termination_message import RunContext
from finetune_trainer.telemetry.watchdog import stall_watchdog
from finetune_trainer.tracking import credentials, run_tracking, tensorboard_files

if TYPE_CHECKING:
    from finetune_trainer.checkpoints.manager import CheckpointManager
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.publishing.merge import MergedModel
    from finetune_trainer.publishing.published_result import PublishedResult
    from finetune_trainer.records.evaluation import EvaluationReport

log = logging.getLogger(__name__)


def run(
    config: TrainerConfig,
    scratch: Path,
    context: RunContext,
    launch: Callable[[ResolvedInputs, Path, RunContext], Outcome] | None = None,
) -> Outcome:
    """Do it all, writing to `scratch` alone. Raises `TrainerError` for what the user or the world can mend.

    A result that is not there yet is made here, or by `make`, which has it made by several processes.
    """
    if topology.is_rank_zero():
        _check_secrets(config)
    s3 = S3(config.storage)
    output = publish.OutputPrefix(s3, config)
    published = output.find_published()
    resolved = resolve.resolve_inputs(config, s3)
    if published:
        output.check_inputs(published, resolved)
    if published and not _should_merge_here(output, published):
        output.remove_leftovers()  # the attempt that published may have died before it did
        final_outcome = published.to_outcome(output.uri)
    elif launch and not published:
        final_outcome = launch(resolved, scratch, context)
    else:
        final_outcome = _run_attempt(resolved, output, scratch, context)
    if final_outcome.reason.exit_code == 0:
        context.progress.update(stage=Stage.DONE, percentage=100)
    return final_outcome


def _check_secrets(config: TrainerConfig) -> None:
    """Those that are needed late. Raises `AUTH_FAILED`."""
    if config.output.signing:
        signing.check_signing_key(config.output.signing)
    if config.tracking and config.tracking.tool != "tensorboard":
        credentials.read_credentials(config.tracking)


def _run_attempt(resolved: ResolvedInputs, output: publish.OutputPrefix, scratch: Path, context: RunContext) -> Outcome:
    """While the output is ours, and as long as something moves."""
    stall_seconds = resolved.config.training.stall_seconds
    with (
        output.hold_lock(context.progress) if topology.is_rank_zero() else nullcontext() as output_lock,
        _open_work_folder(scratch) as folder,
        _capture_log(folder, context),
        run_tracking.track_run(resolved.config, output.digest, folder, context),
        stall_watchdog(context, folder, stall_seconds, lambda: resolved.s3.bytes_transferred),
        collectives.translate_peer_errors(),
    ):
        published = output.find_published()  # whoever held the output before may have finished
        if published:
            return _complete_published(resolved, output, published, folder, context)
        if topology.is_rank_zero():
            output.check_foreign_files()
        return _train_and_publish(resolved, output, output_lock, folder, context)


def _should_merge_here(output: publish.OutputPrefix, published: PublishedResult) -> bool:
    """Whether the result there lacks its merged model, and this process is the one of the run that makes it."""
    return (
        output.lacks_merged_model(published) and topology.is_rank_zero() and topology.topology_from_env().node_rank == 0
    )


def _complete_published(
    resolved: ResolvedInputs,
    output: publish.OutputPrefix,
    published: PublishedResult,
    folder: Path,
    context: RunContext,
) -> Outcome:
    """The adapter is there; make its merged model if that is missing."""
    published_outcome = published.to_outcome(output.uri)
    if not _should_merge_here(output, published):
        return published_outcome
    output.clear_checkpoints()
    if topology.topology_from_env().processes_per_node > 1:
        topology.use_first_gpu()
    return merge_stage.add_merged_model(
        published_outcome,
        output,
        context,
        lambda: _merge_published_adapter(resolved, output, published, folder, context),
    )


def _merge_published_adapter(
    resolved: ResolvedInputs,
    output: publish.OutputPrefix,
    published: PublishedResult,
    folder: Path,
    context: RunContext,
) -> MergedModel:
    """The merged model of an adapter that an earlier attempt has published."""
    config, backend = resolved.config, "transformers"  # which loads the adapters of either backend
    download_future = resolve.start_download(resolved, folder)
    from finetune_trainer.modeling import loading

    loading.import_backend(backend, config.model.quantization)
    from finetune_trainer.publishing import merge, merge_check

    downloaded, prepared = _prepare_inputs(config, download_future, folder, context)
    adapter_dir = output.download_adapter(published, folder / "adapter")
    tokenizer = loading.load_tokenizer(downloaded.model_dir, config.model.chat_template)
    loaded = loading.LoadedModel(
        loading.load_model(config, downloaded.model_dir, backend, adapter_dir), tokenizer, backend
    )
    merge_inputs = merge.MergeInputs(
        config, downloaded.model_dir, merge_check.select_check_texts(prepared, loaded), context.progress.heartbeat
    )
    return merge.merge_adapter(merge_inputs, loaded, folder / "merged")


@contextmanager
def _open_work_folder(scratch: Path) -> Iterator[Path]:
    """A folder for this attempt; the workers of a node share theirs, which is their launcher's."""
    shared_folder = topology.shared_folder()
    if shared_folder:
        yield shared_folder
        return
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _capture_log(folder: Path, context: RunContext) -> Iterator[None]:
    """The first worker's, which is the one that publishes."""
    if not topology.is_rank_zero():
        yield
        return
    with run_log.capture_log(folder) as context.log:
        yield


def _train_and_publish(
    resolved: ResolvedInputs,
    output: publish.OutputPrefix,
    output_lock: OutputLock | None,
    folder: Path,
    context: RunContext,
) -> Outcome:
    config = resolved.config
    download_future = resolve.start_download(resolved, folder) if topology.is_local_rank_zero() else Future()
    backend = context.backend = _import_backend(config)  # seconds of imports, while the download goes on
    if context.tracker:
        context.tracker.start()
    collectives.init_process_group(context.progress)
    downloaded, prepared = collectives.run_on_local_rank_zero(
        lambda: _prepare_inputs(config, download_future, folder, context), folder, context.progress
    )

    # Only now: the backend decides what has to be imported first.
    from finetune_trainer.checkpoints import follower, manager
    from finetune_trainer.evaluation import requirements, runner
    from finetune_trainer.modeling import loading, positions
    from finetune_trainer.publishing import export, merge, merge_check
    from finetune_trainer.reporting import writer
    from finetune_trainer.training.train import train

    _enter_stage(Stage.LOADING, context)
    tokenizer = loading.load_tokenizer(downloaded.model_dir, config.model.chat_template)
    limited_config = positions.limit_max_length(
        config, positions.get_max_positions(loading.load_model_config(downloaded.model_dir))
    )
    peft_model = loading.load_model(limited_config, downloaded.model_dir, backend, downloaded.adapter_dir)
    loaded = loading.LoadedModel(peft_model, tokenizer, backend)

    _enter_stage(Stage.TRAINING, context)
    checkpoint_store = output.checkpoint_store(prepared.digest, downloaded.start_revision)
    checkpoint_manager = (
        manager.build_checkpoint_manager(checkpoint_store, output_lock, context, config.training.checkpoints)
        if output_lock
        else follower.NonPrimaryCheckpointManager(checkpoint_store)
    )
    with checkpoint_manager.open_session(context, folder) as session:
        train_result = train(limited_config, loaded, prepared, session, folder)
    if isinstance(checkpoint_manager, follower.NonPrimaryCheckpointManager):
        collectives.barrier(context.progress)  # so that a pod ends well only when the result is whole
        return termination_message.build_outcome(Reason.COMPLETED, "trained with the first worker, which has published")

    _enter_stage(Stage.EVALUATING, context)
    evaluation_input = runner.EvaluationInput(
        config, loaded, prepared, train_result, requirements.read_sentence_pairs(downloaded.pairs)
    )
    evaluation = runner.evaluate(evaluation_input, context.progress)
    metrics, adapter_info = (
        {**evaluation.flatten_metrics(), **train_result.metrics},
        export.collect_adapter_info(config, loaded),
    )
    manifest = build_manifest(config, downloaded, backend, prepared.report, metrics)
    manifest = manifest.model_copy(update={"config_digest": output.digest})
    _check_evaluation_gate(
        evaluation,
        checkpoint_manager,
        lambda report_folder: writer.write_evaluation(report_folder, manifest, evaluation, adapter_info),
        output,
    )

    _enter_stage(Stage.EXPORTING, context)
    adapter_dir = folder / "adapter"
    export.export_adapter(config, loaded, adapter_dir, downloaded.model_revision, downloaded.model_dir)
    if context.log:
        context.log.save(adapter_dir)
    tensorboard_files.write_event_file(config, train_result, metrics, adapter_dir)
    writer.write_reports(adapter_dir, manifest, evaluation, adapter_info)

    _enter_stage(Stage.UPLOADING, context)
    final_outcome = output.publish(adapter_dir, manifest)
    collectives.release_waiters()
    checkpoint_manager.clear()
    tracking_warning = run_tracking.finish_run(context, manifest, final_outcome)
    message = "; ".join(filter(None, (final_outcome.message, evaluation.explain_too_few_rows(), tracking_warning)))
    final_outcome = final_outcome.model_copy(update={"message": message})
    if not config.output.merged:
        return final_outcome

    def merge_model() -> MergedModel:
        merge_inputs = merge.MergeInputs(
            limited_config,
            downloaded.model_dir,
            merge_check.select_check_texts(prepared, loaded),
            context.progress.heartbeat,
        )
        return merge.merge_adapter(merge_inputs, loaded, folder / "merged")

    return merge_stage.add_merged_model(final_outcome, output, context, merge_model)


def _prepare_inputs(
    config: TrainerConfig, download_future: Future[DownloadedInputs], folder: Path, context: RunContext
) -> tuple[DownloadedInputs, PreparedData]:
    """What is done once on each node."""
    from finetune_trainer.data import preparation
    from finetune_trainer.data.row_schema import RowEncoding
    from finetune_trainer.evaluation import requirements
    from finetune_trainer.inputs import model_files
    from finetune_trainer.modeling import loading, positions
    from finetune_trainer.training.methods import get_method

    downloaded = download_future.result()
    _enter_stage(Stage.PREPARING, context)
    model_files.check_model_dir(downloaded.model_dir)
    tokenizer = loading.load_tokenizer(downloaded.model_dir, config.model.chat_template)
    files = preparation.DataFiles(downloaded.sources, downloaded.digest, downloaded.validation)
    model_config = loading.load_model_config(downloaded.model_dir)
    loading.check_vocabulary(tokenizer, model_config.get_text_config().vocab_size)
    prepared = preparation.prepare_dataset(
        config,
        files,
        RowEncoding(tokenizer, get_method(config), positions.get_max_positions(model_config)),
        folder,
    )
    context.dataset = prepared.report
    requirements.check_requirements(config, prepared, tokenizer)
    requirements.read_sentence_pairs(downloaded.pairs)  # so that a wrong line is told before training
    return downloaded, prepared


def _check_evaluation_gate(
    evaluation: EvaluationReport,
    checkpoint_manager: CheckpointManager,
    write_report: Callable[[Path], None],
    output: publish.OutputPrefix,
) -> None:
    """Raises `EVALUATION_GATE` if the model is not what was asked for. Nothing of it is published but the report."""
    failed_checks = [gate_check for gate_check in evaluation.gate if not gate_check.passed]
    if not failed_checks:
        return
    report_note = _store_rejected_report(write_report, output)
    checkpoint_manager.clear()
    collectives.release_waiters()
    failures = "; ".join(f"{gate_check.rule}, it is {_format_number(gate_check.value)}" for gate_check in failed_checks)
    raise TrainerError(
        Reason.EVALUATION_GATE,
        f"the tuned model does not pass evaluation.gate and is not published: {failures}; train on more or "
        "better data, "
        f"or change the training, under a new name{report_note}",
    )


def _store_rejected_report(write_report: Callable[[Path], None], output: publish.OutputPrefix) -> str:
    """Where the report of a model that is not published lies, as the end of a sentence."""
    with TemporaryDirectory(prefix="rejected-") as folder:
        write_report(Path(folder))
        try:
            return f"; the report is {output.store_rejected_report(Path(folder))}"
        except TrainerError as error:
            log.warning("the report could not be stored: %s", error.message)
            return ""


def _format_number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _import_backend(config: TrainerConfig) -> str:
    from finetune_trainer.modeling import loading

    backend = loading.choose_backend(config)
    loading.import_backend(backend, config.model.quantization)
    return backend


def _enter_stage(stage: Stage, context: RunContext) -> None:
    context.progress.update(stage=stage)
    log.info("stage: %s", stage)


def build_manifest(
    config: TrainerConfig, downloaded: DownloadedInputs, backend: str, report: DatasetReport, metrics: dict[str, float]
) -> AdapterManifest:
    """The record of a run, but for the files, which are not uploaded yet."""
    adapter_files = downloaded.adapter.files if downloaded.adapter else []
    model_records = [InputRecord.from_file(file) for file in downloaded.model.files]
    return AdapterManifest(
        created_at=current_timestamp(),
        config_digest=config.digest(),
        config=config.to_json(),
        recipe=RECIPE,
        model=ModelRecord(uri=config.model.uri, revision=downloaded.model_revision, files=model_records),
        inputs=[InputRecord.from_file(file) for file in (*downloaded.files, *adapter_files)],
        backend=backend,
        dataset=report,
        metrics=metrics,
        versions=get_installed_versions(),
        files=[],
    )
