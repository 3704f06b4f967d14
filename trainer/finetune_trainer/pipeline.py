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
from finetune_trainer.inputs.resolve import Inputs, Located
from finetune_trainer.publishing import merge_stage, publish, signing
from finetune_trainer.publishing.output_lock import Claim
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import AdapterManifest, InputRecord, ModelRecord, installed_versions
from finetune_trainer.storage import S3
from finetune_trainer.telemetry import run_log, termination_message
from finetune_trainer.telemetry.progress import now
from finetune_trainer.telemetry.termination_message import Known
from finetune_trainer.telemetry.watchdog import watched
from finetune_trainer.tracking import credentials, run_tracking, tensorboard_files

if TYPE_CHECKING:
    from finetune_trainer.checkpoints.manager import Keeper
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.publishing.merge import Merged
    from finetune_trainer.publishing.published_result import Existing
    from finetune_trainer.records.evaluation import Evaluation

log = logging.getLogger(__name__)


def run(
    config: TrainerConfig, scratch: Path, known: Known, make: Callable[[Located, Path, Known], Outcome] | None = None
) -> Outcome:
    """Do it all, writing to `scratch` alone. Raises `TrainerError` for what the user or the world can mend.

    A result that is not there yet is made here, or by `make`, which has it made by several processes.
    """
    if topology.is_first():
        _check_secrets(config)
    s3 = S3(config.storage)
    output = publish.Output(s3, config)
    earlier = output.existing()
    located = resolve.locate(config, s3)
    if earlier:
        output.check_inputs(earlier, located)
    if earlier and not _merges_here(output, earlier):
        output.tidy()  # the attempt that published may have died before it did
        ended = earlier.outcome(output.uri)
    elif make and not earlier:
        ended = make(located, scratch, known)
    else:
        ended = _make(located, output, scratch, known)
    if ended.reason.exit_code == 0:
        known.progress.update(stage=Stage.DONE, percentage=100)
    return ended


def _check_secrets(config: TrainerConfig) -> None:
    """Those that are needed late. Raises `AUTH_FAILED`."""
    if config.output.signing:
        signing.check_key(config.output.signing)
    if config.tracking and config.tracking.tool != "tensorboard":
        credentials.read(config.tracking)


def _make(located: Located, output: publish.Output, scratch: Path, known: Known) -> Outcome:
    """While the output is ours, and as long as something moves."""
    seconds = located.config.training.stall_seconds
    with (
        output.claimed(known.progress) if topology.is_first() else nullcontext() as claim,
        _folder(scratch) as folder,
        _log_kept(folder, known),
        run_tracking.tracked(located.config, output.digest, folder, known),
        watched(known, folder, seconds, lambda: located.s3.moved),
        collectives.peer_errors(),
    ):
        earlier = output.existing()  # whoever held the output before may have finished
        if earlier:
            return _complete(located, output, earlier, folder, known)
        if topology.is_first():
            output.check_foreign()
        return _train(located, output, claim, folder, known)


def _merges_here(output: publish.Output, earlier: Existing) -> bool:
    """Whether the result there lacks its merged model, and this process is the one of the run that makes it."""
    return output.lacks_merged(earlier) and topology.is_first() and topology.asked().node == 0


def _complete(located: Located, output: publish.Output, earlier: Existing, folder: Path, known: Known) -> Outcome:
    """The adapter is there; make its merged model if that is missing."""
    ended = earlier.outcome(output.uri)
    if not _merges_here(output, earlier):
        return ended
    output.clear_checkpoints()
    if topology.asked().per_node > 1:
        topology.use_first_gpu()
    return merge_stage.add(ended, output, known, lambda: _merge_published(located, output, earlier, folder, known))


def _merge_published(located: Located, output: publish.Output, earlier: Existing, folder: Path, known: Known) -> Merged:
    """The merged model of an adapter that an earlier attempt has published."""
    config, backend = located.config, "transformers"  # which loads the adapters of either backend
    downloading = resolve.start(located, folder)
    from finetune_trainer.modeling import loading

    loading.import_backend(backend, config.model.quantization)
    from finetune_trainer.publishing import merge, merge_check

    fetched, prepared = _prepare(config, downloading, folder, known)
    adapter_dir = output.fetch_adapter(earlier, folder / "adapter")
    tokenizer = loading.load_tokenizer(fetched.model_dir, config.model.chat_template)
    loaded = loading.Loaded(loading.load_model(config, fetched.model_dir, backend, adapter_dir), tokenizer, backend)
    task = merge.Merging(config, fetched.model_dir, merge_check.texts(prepared, loaded), known.progress.alive)
    return merge.merge(task, loaded, folder / "merged")


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A folder for this attempt; the workers of a node share theirs, which is their launcher's."""
    shared = topology.shared_folder()
    if shared:
        yield shared
        return
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _log_kept(folder: Path, known: Known) -> Iterator[None]:
    """The first worker's, which is the one that publishes."""
    if not topology.is_first():
        yield
        return
    with run_log.kept(folder) as known.log:
        yield


def _train(located: Located, output: publish.Output, claim: Claim | None, folder: Path, known: Known) -> Outcome:
    config = located.config
    downloading = resolve.start(located, folder) if topology.leads_node() else Future()
    backend = known.backend = _import_backend(config)  # seconds of imports, while the download goes on
    if known.tracker:
        known.tracker.start()
    collectives.join(known.progress)
    fetched, prepared = collectives.once_per_node(
        lambda: _prepare(config, downloading, folder, known), folder, known.progress
    )

    # Only now: the backend decides what has to be imported first.
    from finetune_trainer.checkpoints import follower, manager
    from finetune_trainer.evaluation import requirements, runner
    from finetune_trainer.modeling import loading, positions
    from finetune_trainer.publishing import export, merge, merge_check
    from finetune_trainer.reporting import writer
    from finetune_trainer.training import cross_validation

    _enter(Stage.LOADING, known)
    tokenizer = loading.load_tokenizer(fetched.model_dir, config.model.chat_template)
    limited = positions.limit_length(config, positions.max_positions(loading.load_config(fetched.model_dir)))
    tuned = loading.load_model(limited, fetched.model_dir, backend, fetched.adapter_dir)
    loaded = loading.Loaded(tuned, tokenizer, backend)

    _enter(Stage.TRAINING, known)
    store = output.checkpoints(prepared.digest, fetched.start_revision)
    keeper = manager.keeper(store, claim, known, config.training.checkpoints) if claim else follower.Follower(store)
    with keeper.session(known, folder) as session:
        trained = cross_validation.train(limited, loaded, prepared, session, folder)
    if isinstance(keeper, follower.Follower):
        collectives.wait(known.progress)  # so that a pod ends well only when the result is whole
        return termination_message.make(Reason.COMPLETED, "trained with the first worker, which has published")

    _enter(Stage.EVALUATING, known)
    subject = runner.Subject(config, loaded, prepared, trained, requirements.pairs(fetched.pairs))
    evaluation = runner.evaluate(subject, known.progress)
    metrics, facts = {**evaluation.metrics(), **trained.metrics}, export.facts(config, loaded)
    record = describe(config, fetched, backend, prepared.report, metrics)
    record = record.model_copy(update={"config_digest": output.digest})
    _check_gate(evaluation, keeper, lambda kept: writer.explain(kept, record, evaluation, facts), output)

    _enter(Stage.EXPORTING, known)
    adapter = folder / "adapter"
    export.export(config, loaded, adapter, fetched.model_revision, fetched.model_dir)
    if known.log:
        known.log.save(adapter)
    tensorboard_files.write(config, trained, metrics, adapter)
    writer.write(adapter, record, evaluation, facts)

    _enter(Stage.UPLOADING, known)
    ended = output.publish(adapter, record)
    collectives.release()
    keeper.clear()
    lost = run_tracking.end(known, record, ended)
    said = "; ".join(filter(None, (ended.message, evaluation.too_few(), lost)))
    ended = ended.model_copy(update={"message": said})
    if not config.output.merged:
        return ended

    def make() -> Merged:
        task = merge.Merging(limited, fetched.model_dir, merge_check.texts(prepared, loaded), known.progress.alive)
        return merge.merge(task, loaded, folder / "merged")

    return merge_stage.add(ended, output, known, make)


def _prepare(
    config: TrainerConfig, downloading: Future[Inputs], folder: Path, known: Known
) -> tuple[Inputs, PreparedData]:
    """What is done once on each node."""
    from finetune_trainer.data import preparation
    from finetune_trainer.evaluation import requirements
    from finetune_trainer.inputs import model_files
    from finetune_trainer.modeling import loading, positions

    fetched = downloading.result()
    _enter(Stage.PREPARING, known)
    model_files.check_model_dir(fetched.model_dir)
    tokenizer = loading.load_tokenizer(fetched.model_dir, config.model.chat_template)
    files = preparation.Files(fetched.sources, fetched.digest, fetched.validation)
    shape = loading.load_config(fetched.model_dir)
    loading.check_vocabulary(tokenizer, shape.get_text_config().vocab_size)
    prepared = preparation.prepare(config, files, tokenizer, folder, positions.max_positions(shape))
    known.dataset = prepared.report
    requirements.check(config, prepared, tokenizer)
    requirements.pairs(fetched.pairs)  # so that a wrong line is told before training
    return fetched, prepared


def _check_gate(
    evaluation: Evaluation, keeper: Keeper, explain: Callable[[Path], None], output: publish.Output
) -> None:
    """Raises `EVALUATION_GATE` if the model is not what was asked for. Nothing of it is published but the report."""
    failed = [check for check in evaluation.gate if not check.passed]
    if not failed:
        return
    report = _report_kept(explain, output)
    keeper.clear()
    collectives.release()
    found = "; ".join(f"{check.rule}, it is {_number(check.value)}" for check in failed)
    raise TrainerError(
        Reason.EVALUATION_GATE,
        f"the tuned model does not pass evaluation.gate and is not published: {found}; train on more or better data, "
        f"or change the training, under a new name{report}",
    )


def _report_kept(explain: Callable[[Path], None], output: publish.Output) -> str:
    """Where the report of a model that is not published lies, as the end of a sentence."""
    with TemporaryDirectory(prefix="rejected-") as folder:
        explain(Path(folder))
        try:
            return f"; the report is {output.keep_report(Path(folder))}"
        except TrainerError as error:
            log.warning("the report could not be stored: %s", error.message)
            return ""


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def _import_backend(config: TrainerConfig) -> str:
    from finetune_trainer.modeling import loading

    backend = loading.choose_backend(config)
    loading.import_backend(backend, config.model.quantization)
    return backend


def _enter(stage: Stage, known: Known) -> None:
    known.progress.update(stage=stage)
    log.info("stage: %s", stage)


def describe(
    config: TrainerConfig, fetched: Inputs, backend: str, report: DatasetReport, metrics: dict[str, float]
) -> AdapterManifest:
    """The record of a run, but for the files, which are not uploaded yet."""
    adapter = fetched.adapter.files if fetched.adapter else []
    model_files = [InputRecord.read(file) for file in fetched.model.files]
    return AdapterManifest(
        created_at=now(),
        config_digest=config.digest(),
        config=config.to_json(),
        recipe=RECIPE,
        model=ModelRecord(uri=config.model.uri, revision=fetched.model_revision, files=model_files),
        inputs=[InputRecord.read(file) for file in (*fetched.files, *adapter)],
        backend=backend,
        dataset=report,
        metrics=metrics,
        versions=installed_versions(),
        files=[],
    )
