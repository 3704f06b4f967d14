"""A run, top to bottom: data and base model in, adapter out."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune_trainer import inputs
from finetune_trainer.contract import DatasetReport, Outcome, Stage, TrainerConfig
from finetune_trainer.inputs import Inputs, Located
from finetune_trainer.outcome import Known
from finetune_trainer.output import publish
from finetune_trainer.output.claim import Claim
from finetune_trainer.output.records import AdapterManifest, InputRecord, ModelRecord, installed_versions
from finetune_trainer.progress import now
from finetune_trainer.stall import watched
from finetune_trainer.storage import S3

log = logging.getLogger(__name__)


def run(config: TrainerConfig, scratch: Path, known: Known) -> Outcome:
    """Do it all, writing to `scratch` alone. Raises `TrainerError` for what the user or the world can mend."""
    s3 = S3(config.storage)
    output = publish.Output(s3, config)
    earlier = output.existing()
    located = inputs.locate(config, s3)
    if earlier:
        output.check_inputs(earlier, located)
        output.clear_checkpoints()  # the attempt that published may have died before it did
        outcome = earlier.outcome(output.uri)
    else:
        outcome = _make(located, output, scratch, known)
    known.progress.update(stage=Stage.DONE, percentage=100)
    return outcome


def _make(located: Located, output: publish.Output, scratch: Path, known: Known) -> Outcome:
    """While the output is ours, and as long as something moves."""
    seconds = located.config.training.stall_seconds
    with (
        output.claimed() as claim,
        TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder,
        watched(known, Path(folder), seconds),
    ):
        earlier = output.existing()  # whoever held the output before may have finished
        return earlier.outcome(output.uri) if earlier else _train(located, output, claim, Path(folder), known)


def _train(located: Located, output: publish.Output, claim: Claim, folder: Path, known: Known) -> Outcome:
    config = located.config
    downloading = inputs.start(located, folder)
    backend = known.backend = _import_backend(config)  # seconds of imports, while the download goes on
    fetched = downloading.result()

    # Only now: the backend decides what has to be imported first.
    from finetune_trainer.checkpoints import saving
    from finetune_trainer.data import preparing
    from finetune_trainer.models import model, model_files
    from finetune_trainer.output import export
    from finetune_trainer.training import train

    _enter(Stage.PREPARING, known)
    model_files.check_model_dir(fetched.model_dir)
    tokenizer = model.load_tokenizer(fetched.model_dir, config.model.chat_template)
    files = preparing.Files(fetched.sources, fetched.digest, fetched.validation)
    prepared = preparing.prepare(config, files, tokenizer, folder)
    known.dataset = prepared.report

    _enter(Stage.LOADING, known)
    tuned = model.load_model(config, fetched.model_dir, backend, fetched.adapter_dir)
    loaded = model.Loaded(tuned, tokenizer, backend)

    _enter(Stage.TRAINING, known)
    store = output.checkpoints(fetched.digest, fetched.start_revision)
    keeper = saving.keeper(store, claim, known, config.training.checkpoints)
    with keeper.session(known, folder) as session:
        metrics = train.train(config, loaded, prepared, session, folder)

    _enter(Stage.EXPORTING, known)
    adapter = folder / "adapter"
    export.export(config, loaded, adapter, fetched.model_revision)

    _enter(Stage.UPLOADING, known)
    outcome = output.publish(adapter, describe(config, fetched, backend, prepared.report, metrics))
    keeper.clear()
    return outcome


def _import_backend(config: TrainerConfig) -> str:
    from finetune_trainer.models import model

    backend = model.choose_backend(config)
    model.import_backend(backend)
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
        model=ModelRecord(uri=config.model.uri, revision=fetched.model_revision, files=model_files),
        inputs=[InputRecord.read(file) for file in (*fetched.files, *adapter)],
        backend=backend,
        dataset=report,
        metrics=metrics,
        versions=installed_versions(),
        files=[],
    )
