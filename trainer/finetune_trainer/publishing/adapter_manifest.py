"""The manifest of a trained adapter: what it was made of, and with what."""

from __future__ import annotations

import os

from finetune_trainer.contract import JOB_ENV, DatasetReport, TrainerConfig
from finetune_trainer.inputs.resolve import DownloadedInputs
from finetune_trainer.modeling.servable import describe_servable, read_architecture
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import AdapterManifest, InputRecord, ModelRecord, get_installed_versions
from finetune_trainer.telemetry.progress import current_timestamp


def build_manifest(
    config: TrainerConfig, files: DownloadedInputs, backend: str, report: DatasetReport, metrics: dict[str, float]
) -> AdapterManifest:
    """Build the manifest of a result without its files, which are listed as they are uploaded."""
    model = ModelRecord(
        uri=config.model.uri,
        revision=files.model_revision,
        files=[InputRecord.from_file(file) for file in files.model.files],
        license_fields=dict(files.model.license_fields),
    )
    return AdapterManifest(
        created_at=current_timestamp(),
        job=os.environ.get(JOB_ENV, ""),
        config_digest=config.digest(),
        config=config.to_json(),
        recipe=RECIPE,
        model=model,
        inputs=[InputRecord.from_file(file) for file in (*files.files, *files.adapter_files)],
        backend=backend,
        dataset=report,
        metrics=metrics,
        servable=describe_servable(config, read_architecture(files.model_dir)),
        versions=get_installed_versions(),
        files=[],
    )
