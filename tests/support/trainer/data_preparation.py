"""Data preparation with the tokenizer of the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.trainer.tiny_model import CHATML, config, tokenizer, write_rows

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.preparation import DataFiles, PreparedData
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.training.methods import get_method


def build_config(training: dict[str, Any] | None = None, max_length: int = 300, **dataset: Any) -> TrainerConfig:
    content = config(training, max_length).to_json()
    content["dataset"].update(dataset)
    return TrainerConfig.model_validate(content)


def prepare_rows(
    folder: Path,
    rows: Sequence[Any],
    settings: TrainerConfig,
    held_out: Sequence[Any] = (),
    template: str | None = CHATML,
    test_rows: Sequence[Any] = (),
) -> PreparedData:
    source = settings.dataset.sources[0]
    folder.mkdir(exist_ok=True)
    training = [(source, [write_rows(folder / "rows", rows)])]
    validation = [(source, [write_rows(folder / "held out", held_out, "s3://data/val.jsonl")])] if held_out else []
    test = [(source, [write_rows(folder / "test", test_rows, "s3://data/test.jsonl")])] if test_rows else []
    return preparation.prepare_dataset(
        settings,
        DataFiles(training, "sha256:0", validation, test),
        RowEncoding(tokenizer(template), get_method(settings)),
        folder / "work",
    )


def prompt_completion(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}
