"""A run from its inputs to the published adapter, after `run_setup.resolve_run` has checked what needs no download.

The stages below `run` import libraries inside functions: which backend is imported first matters, and it is imported
while the inputs are downloaded.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer import input_preparation
from finetune_trainer.checkpoints.manager import CheckpointManager, create_checkpoint_manager
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.config.template_date import get_current_date, read_template_date
from finetune_trainer.context import RunContext
from finetune_trainer.contract import Outcome, Reason, Stage, TrainerConfig
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.decisions import explain_few_rows
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.model_cache.cached_source import skip_unused_cache
from finetune_trainer.inputs.resolve import DownloadedInputs, ResolvedInputs
from finetune_trainer.inputs.weights_download import start_weights_download
from finetune_trainer.publishing import gguf_stage, merge_stage
from finetune_trainer.publishing.adapter_manifest import build_manifest
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.run_setup import ResolvedRun, open_run
from finetune_trainer.storage import check_disk_space
from finetune_trainer.telemetry.termination_message import OutcomeRecorder, build_outcome
from finetune_trainer.tracking import run_tracking, tensorboard_files
from finetune_trainer.training import scratch_needs
from finetune_trainer.training.step_stop import StepReached

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import LoadedModel
    from finetune_trainer.publishing.merge import MergedModel
    from finetune_trainer.publishing.published_result import PublishedResult
    from finetune_trainer.records.adapter import AdapterInfo
    from finetune_trainer.records.evaluation import EvaluationReport, GateCheck
    from finetune_trainer.training.state import TrainResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedInputs:
    """Downloaded files and the dataset that was prepared from them. Picklable: the ranks of a node share it."""

    files: DownloadedInputs
    dataset: PreparedData
    training_config: TrainerConfig
    """The config with `model.maxLength` limited to the positions of the model. It is never stored."""


@dataclass(frozen=True)
class RunReport:
    """What is known about the trained adapter, before it is published or rejected."""

    manifest: AdapterManifest
    evaluation: EvaluationReport
    adapter: AdapterInfo

    @property
    def failed_checks(self) -> list[GateCheck]:
        """Checks of `evaluation.gate` that the adapter did not pass."""
        return [check for check in self.evaluation.gate if not check.passed]


def run(resolved: ResolvedRun, scratch: Path, recorder: OutcomeRecorder) -> Outcome:
    """Train and publish the adapter, unless its result is published already or the training stops at a step. Writes
    files below `scratch` and the temporary folder only.

    With several ranks, each calls this function, and rank 0 alone evaluates and writes to the store. Raises
    `TrainerError` for problems that the user or an administrator can fix.
    """
    output, published = resolved.output, resolved.published
    if published and not _should_complete_here(output, published):
        output.remove_leftovers()  # of an attempt that died after publishing
        return published.to_outcome(output.uri)
    with open_run(resolved, scratch, recorder) as context:
        if published := output.find_published():  # by the attempt that held the output lock before
            return complete_published(published, resolved, context)
        if topology.is_rank_zero():
            output.check_foreign_files()
        download = start_download(resolved.inputs, context)  # in the background
        backend = import_backend(resolved.inputs, context)  # meanwhile: it takes seconds
        collectives.init_process_group(context.progress.heartbeat)
        prepare = partial(prepare_inputs, download, resolved.inputs, choose_template_date(output), backend, context)
        inputs = collectives.run_on_local_rank_zero(prepare, context.work_dir, context.progress.heartbeat)
        model = load_model(inputs, backend, context)
        store = _open_checkpoint_store(inputs, output)
        checkpoints = create_checkpoint_manager(store, context)
        try:
            result = train_adapter(model, inputs, checkpoints, resolved.suspend_step, context)
        except StepReached as reached:
            return suspend_run(reached, store, context)
        if not topology.is_rank_zero():
            follow_rank_zero(model, context)
            return wait_for_rank_zero(context, Reason.COMPLETED)
        report, adapter_dir = evaluate_and_export(model, inputs, result, output.digest, context)
        if adapter_dir is None:
            raise reject_adapter(report, output, checkpoints)
        outcome = publish_adapter(adapter_dir, report, output, checkpoints, context)
        if context.config.output.merged:
            merge_model = partial(merge_trained_adapter, model, inputs, context)
            outcome = merge_stage.add_merged_model(outcome, output, context, merge_model)
        model_dir = inputs.files.model_dir
        collect = partial(gguf_stage.collect_trained_sources, outcome, output, model_dir, adapter_dir, context)
        return gguf_stage.add_gguf_files(outcome, output, context, collect)


def start_download(inputs: ResolvedInputs, context: RunContext) -> Future[DownloadedInputs]:
    """Download the inputs without the weights of the base model in the background, once on each node. Other ranks get a
    future that is never done."""
    if not topology.is_local_rank_zero():
        return Future()
    check_disk_space(context.work_dir, scratch_needs.list_download_parts(inputs, inputs.model.size))
    return resolve.start_download(inputs, context.work_dir)


def import_backend(inputs: ResolvedInputs, context: RunContext) -> str:
    """Choose and import the backend, then start the tracker. Returns the name of the backend."""
    from finetune_trainer.inputs.base_model import read_model_settings
    from finetune_trainer.modeling import backends

    backend = backends.choose_backend(context.config, lambda: read_model_settings(inputs.model))
    backends.import_backend(backend, context.config.model.quantization)
    context.recorder.record_backend(backend)
    if context.tracker:
        context.tracker.start()
    return backend


def choose_template_date(output: OutputPrefix) -> date:
    """Return the date that chat templates write as the current one, which is the same in all ranks and attempts.

    It is that of the checkpoints of this config, if there are any: also those of an earlier run, which this one
    resumes from. Otherwise it is the date in the environment, or today.
    """
    if not topology.is_rank_zero():
        return date.fromordinal(collectives.broadcast(0))
    template_date = output.find_template_date() or read_template_date() or get_current_date()
    return date.fromordinal(collectives.broadcast(template_date.toordinal()))


def prepare_inputs(
    download: Future[DownloadedInputs],
    resolved: ResolvedInputs,
    template_date: date,
    backend: str | None,
    context: RunContext,
) -> PreparedInputs:
    """Wait for the download, check the model's files, and prepare the dataset while the weights are downloaded. One
    rank of each node does this. An error in the data, or too little memory, stops the download of the weights.

    `backend` is the one that trains. Without training it is None, and the memory is not checked.
    """
    from finetune_trainer.modeling.positions import limit_max_length

    config, files = context.config, download.result()
    context.recorder.record_model_cache(files.model.cache_result)
    resolved = skip_unused_cache(resolved, files.model)
    context.enter_stage(Stage.PREPARING)
    model = input_preparation.check_model(config, files, template_date)
    recorder, work_dir = context.recorder, context.work_dir
    if backend:
        input_preparation.check_base_memory(config, model, backend)
    with start_weights_download(resolved, files) as weights:
        dataset = input_preparation.prepare_data(config, files, model, work_dir, recorder.record_dataset)
        recorder.record_rejected_rows(dataset.rejected_examples)
        if backend:
            input_preparation.check_memory(config, model, dataset, backend)
        remaining = input_preparation.list_remaining_parts(config, model, dataset, weights.missing_bytes)
        check_disk_space(work_dir, remaining)
        context.enter_stage(Stage.DOWNLOADING)
        files = weights.wait()
    return PreparedInputs(files, dataset, limit_max_length(config, model.max_positions))


def load_model(inputs: PreparedInputs, backend: str, context: RunContext) -> LoadedModel:
    """Load the base model with a new adapter, or with the adapter that training starts from."""
    from finetune_trainer.modeling import baseline_adapter, loading

    context.enter_stage(Stage.LOADING)
    files = inputs.files
    loaded = loading.load_with_tokenizer(inputs.training_config, files.model_dir, backend, files.adapter_dir)
    if backend == "unsloth":
        baseline_adapter.check_unsloth_baselines(files.baseline_dirs, loaded.model)
    return loaded


def _open_checkpoint_store(inputs: PreparedInputs, output: OutputPrefix) -> CheckpointStore:
    dataset = inputs.dataset
    return output.checkpoint_store(dataset.digest, inputs.files.start_revision, dataset.template_date)


def train_adapter(
    model: LoadedModel,
    inputs: PreparedInputs,
    checkpoints: CheckpointManager,
    suspend_step: int | None,
    context: RunContext,
) -> TrainResult:
    """Train the adapter in place, from the newest checkpoint if there is one.

    Raises `StepReached` at the step to stop at, if there is one, once its checkpoint is stored.
    """
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    context.enter_stage(Stage.TRAINING)
    with checkpoints.open_session() as saved:
        session = TrainingSession(
            context.progress,
            resume_from=saved.resume_from,
            saver=saved.saver,
            stop_step=suspend_step,
            log_metrics=context.log_metrics,
            record_preflight=context.recorder.record_preflight,
        )
        try:
            return train(inputs.training_config, model, inputs.dataset, session, context.work_dir)
        except StepReached:
            saved.saver.check_stored()
            raise


def suspend_run(reached: StepReached, store: CheckpointStore, context: RunContext) -> Outcome:
    """Return the outcome of a run that is at the step to stop at. Nothing is published, and the checkpoints are kept.

    Its log is that of the checkpoint.
    """
    if not topology.is_rank_zero():
        return wait_for_rank_zero(context, Reason.STEP_REACHED)
    from finetune_trainer.evaluation.step_result import build_stop_outcome

    collectives.release_waiters()
    run_tracking.stop_run(context.tracker)
    return build_stop_outcome(reached, store.build_log_uri(reached.evaluation.step))


def keep_ranks_in_step(model: LoadedModel, context: RunContext) -> AbstractContextManager[None]:
    """Return the context in which rank 0 evaluates and exports: the other ranks compute their part of a sharded base
    model."""
    from finetune_trainer.modeling.sharding import keep_in_step

    return keep_in_step(model.model, context.progress.heartbeat)


def follow_rank_zero(model: LoadedModel, context: RunContext) -> None:
    """Compute this rank's part of a sharded base model while rank 0 evaluates and exports."""
    with keep_ranks_in_step(model, context):
        pass


def wait_for_rank_zero(context: RunContext, reason: Reason) -> Outcome:
    """Wait until rank 0 has published or rejected the adapter, or stored a checkpoint: the pod of another rank must not
    succeed before."""
    collectives.barrier(context.progress.heartbeat)
    return build_outcome(reason, "trained together with rank 0, which reports the result of the run")


def evaluate_and_export(
    model: LoadedModel, inputs: PreparedInputs, result: TrainResult, digest: str, context: RunContext
) -> tuple[RunReport, Path | None]:
    """Return the report, and the folder of the exported adapter, or None if `evaluation.gate` rejects it."""
    with keep_ranks_in_step(model, context):
        report = evaluate_adapter(model, inputs, result, digest, context)
        if report.failed_checks:
            return report, None
        return report, export_adapter(model, inputs, result, report, context)


def evaluate_adapter(
    model: LoadedModel, inputs: PreparedInputs, result: TrainResult, digest: str, context: RunContext
) -> RunReport:
    """Evaluate base and tuned model. `digest` is that of the config and the number of ranks."""
    from finetune_trainer.evaluation import held_out, result_summary
    from finetune_trainer.publishing import export

    context.enter_stage(Stage.EVALUATING)
    evaluation = _measure_adapter(model, inputs, result, context)
    # The measures of the evaluation replace those of the training, so that all outputs show what the gate has checked.
    metrics = {**result.metrics, **evaluation.flatten_metrics()}
    manifest = build_manifest(context.config, inputs.files, model.backend, inputs.dataset.report, metrics)
    found = {
        "config_digest": digest,
        "template_date": inputs.dataset.template_date,
        "validation_digest": held_out.find_validation_digest(inputs.dataset.validation_digests, inputs.files),
        "verdicts": result_summary.build_verdicts(evaluation),
        "baselines": result_summary.build_comparisons(evaluation),
    }
    adapter_info = export.collect_adapter_info(context.config, model)
    return RunReport(manifest.model_copy(update=found), evaluation, adapter_info)


def _measure_adapter(
    model: LoadedModel, inputs: PreparedInputs, result: TrainResult, context: RunContext
) -> EvaluationReport:
    from finetune_trainer.evaluation import held_out, requirements, runner

    pairs = requirements.read_sentence_pairs(inputs.files.pairs)
    evaluation_input = runner.EvaluationInput(
        context.config, model, inputs.dataset, result, pairs, inputs.files.baseline_dirs
    )
    evaluation = runner.evaluate(evaluation_input, context.progress)
    baselines = held_out.describe_baselines(inputs.dataset.validation_digests, inputs.files)
    return evaluation.model_copy(update={"baselines": baselines})


def reject_adapter(report: RunReport, output: OutputPrefix, checkpoints: CheckpointManager) -> TrainerError:
    """Publish the report alone and discard the checkpoints. Returns the error that ends the run."""
    report_note = _store_rejected_report(report, output)
    checkpoints.clear()
    collectives.release_waiters()
    failures = "; ".join(check.message for check in report.failed_checks)
    return TrainerError(
        Reason.EVALUATION_GATE,
        f"the tuned model does not pass evaluation.gate and is not published: {failures}; train on more or better "
        f"data, or change the training settings, under a new name{report_note}",
    )


def _store_rejected_report(report: RunReport, output: OutputPrefix) -> str:
    """Return where the report is stored, as the end of a sentence; empty if it could not be stored."""
    from finetune_trainer.reporting import writer

    with TemporaryDirectory(prefix="rejected-") as folder:
        writer.write_evaluation(Path(folder), report.manifest, report.evaluation, report.adapter)
        try:
            return f"; the report is {output.store_rejected_report(Path(folder))}"
        except TrainerError as error:
            log.warning("could not store the evaluation report: %s", error.message)
            return ""


def export_adapter(
    model: LoadedModel, inputs: PreparedInputs, result: TrainResult, report: RunReport, context: RunContext
) -> Path:
    """Write adapter, tokenizer, log and reports to a folder, which is returned."""
    from finetune_trainer.publishing import export
    from finetune_trainer.reporting import writer

    context.enter_stage(Stage.EXPORTING)
    config, files, folder = context.config, inputs.files, context.work_dir / "adapter"
    export.export_adapter(config, model, folder, files.model_revision, files.model_dir)
    if context.run_log:
        context.run_log.save(folder)
    tensorboard_files.write_event_file(config, _collect_curves(result), report.manifest.metrics, folder)
    writer.write_reports(folder, report.manifest, report.evaluation, report.adapter)
    return folder


def _collect_curves(result: TrainResult) -> tensorboard_files.Curves:
    """Return the metrics over the steps of the training, by name."""
    curves = {"loss": list(result.losses), "learningRate": list(result.learning_rates)}
    if result.rewards:
        curves["reward"] = [(point.step, point.reward) for point in result.rewards]
        curves["answerTokens"] = [(point.step, point.answer_tokens) for point in result.rewards]
    for eval_result in result.eval_results:
        for name, value in eval_result.metrics.items():
            curves.setdefault(name, []).append((eval_result.step, value))
    return curves


def publish_adapter(
    adapter_dir: Path, report: RunReport, output: OutputPrefix, checkpoints: CheckpointManager, context: RunContext
) -> Outcome:
    """Upload the exported folder, then remove the checkpoints and finish the tracked run."""
    context.enter_stage(Stage.UPLOADING)
    outcome = output.publish(adapter_dir, report.manifest)
    context.recorder.record_published(outcome)
    collectives.release_waiters()
    checkpoints.clear()
    tracking_warning = run_tracking.finish_run(context.tracker, report.manifest, outcome)
    notes = (outcome.message, explain_few_rows(report.evaluation.measures), tracking_warning)
    return outcome.model_copy(update={"message": "; ".join(filter(None, notes))})


def merge_trained_adapter(model: LoadedModel, inputs: PreparedInputs, context: RunContext) -> MergedModel:
    """Write the merged model to the work folder. The loaded model is used up."""
    from finetune_trainer.publishing import merge, merge_check

    texts = merge_check.select_check_texts(inputs.dataset, model)
    merge_inputs = merge.MergeInputs(inputs.training_config, inputs.files.model_dir, texts, context.progress.heartbeat)
    return merge.merge_adapter(merge_inputs, model, context.work_dir / "merged")


def complete_published(published: PublishedResult, resolved: ResolvedRun, context: RunContext) -> Outcome:
    """Return the outcome of a published result, and make its merged model and GGUF files if they are missing."""
    output = resolved.output
    outcome = published.to_outcome(output.uri)
    if not _should_complete_here(output, published):
        return outcome
    output.clear_checkpoints()
    if topology.topology_from_env().processes_per_node > 1:
        topology.use_first_gpu()
    if output.lacks_merged_model(published):
        merge_model = partial(_merge_published_adapter, published, resolved, context)
        outcome = merge_stage.add_merged_model(outcome, output, context, merge_model)
    model = resolved.inputs.model
    fetch = partial(gguf_stage.fetch_published_sources, outcome, published, output, model, context)
    return gguf_stage.add_gguf_files(outcome, output, context, fetch)


def _should_complete_here(output: OutputPrefix, published: PublishedResult) -> bool:
    """Return whether a published result lacks its merged model or GGUF files, and this process makes them."""
    if not (output.lacks_merged_model(published) or output.lacks_gguf_files(published)):
        return False
    return topology.is_rank_zero() and topology.topology_from_env().node_rank == 0


def _merge_published_adapter(published: PublishedResult, resolved: ResolvedRun, context: RunContext) -> MergedModel:
    """Write the merged model of an adapter that an earlier attempt has published."""
    config, backend = context.config, "transformers"  # which loads adapters of either backend
    download = start_download(resolved.inputs, context)
    from finetune_trainer.modeling import backends, loading

    backends.import_backend(backend, config.model.quantization)
    from finetune_trainer.publishing import merge, merge_check

    template_date = published.manifest.template_date or get_current_date()
    inputs = prepare_inputs(download, resolved.inputs, template_date, None, context)
    model_dir = inputs.files.model_dir
    adapter_dir = resolved.output.download_adapter(published, context.work_dir / "adapter")
    model = loading.load_with_tokenizer(config, model_dir, backend, adapter_dir)
    texts = merge_check.select_check_texts(inputs.dataset, model)
    merge_inputs = merge.MergeInputs(config, model_dir, texts, context.progress.heartbeat)
    return merge.merge_adapter(merge_inputs, model, context.work_dir / "merged")
