"""Tests of generating answers with base model and adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, chat, config, write_rows

from finetune_trainer.data import preparation
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.modeling import loading
from finetune_trainer.modeling.generation import generate_completions
from finetune_trainer.publishing.export import export_adapter
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.state import TrainingSession
from finetune_trainer.training.train import train

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

SYSTEM_CHATML = "{% if mood is defined %}<|im_start|>system\n{{ mood }}<|im_end|>\n{% endif %}" + CHATML
ANSWERS = {"What is red?": "A warm colour.", "What is blue?": "A cold colour."}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("model"))
    # As many instruct models ask for: sampling, which must not make answers differ.
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9}))
    return folder


@pytest.fixture(scope="module", params=["template arguments", "plain text"])
def tuned(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return a base model, and an adapter that was trained to reproduce `ANSWERS`."""
    folder = tmp_path_factory.mktemp("run")
    base = shutil.copytree(model_dir, folder / "base")
    rows: list[object] = [chat(*pair) for pair in ANSWERS.items()]
    if request.param == "plain text":
        (base / "chat_template.jinja").unlink()
        rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ANSWERS.items()]
    settings = config({"maxSteps": 80, "batchSize": 2, "gradientAccumulation": 1, "gradientCheckpointing": False})
    if request.param == "template arguments":
        source = {"chat_template": SYSTEM_CHATML, "chat_template_arguments": {"mood": "Be brief."}}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=source)})
    words = loading.load_tokenizer(base, settings.model)
    sources = [(settings.dataset.sources[0], [write_rows(folder / "rows", rows)])]
    prepared = preparation.prepare_dataset(
        settings, preparation.DataFiles(sources, "sha256:0"), RowEncoding(words, get_method(settings)), folder
    )
    loaded = loading.LoadedModel(loading.load_model(settings, base, "transformers"), words, "transformers")
    train(settings, loaded, prepared, TrainingSession(ProgressReporter()), folder)
    export_adapter(settings, loaded, folder / "adapter", "sha256:abc", base)
    return base, folder / "adapter"


def test_generate_adapter_answers_as_trained(tuned: tuple[Path, Path]) -> None:
    base, adapter = tuned
    assert generate_completions(base, adapter, list(ANSWERS), 40) == list(ANSWERS.values())


def test_generate_base_model_is_deterministic(tuned: tuple[Path, Path]) -> None:
    base, _ = tuned
    first, again = (
        generate_completions(base, None, list(ANSWERS), 8),
        generate_completions(base, None, list(ANSWERS), 8),
    )
    assert first == again
    assert first != list(ANSWERS.values())


@pytest.mark.parametrize("tuned", ["template arguments"], indirect=True)
def test_generate_prompts_have_the_template_arguments(tuned: tuple[Path, Path]) -> None:
    words = loading.load_tokenizer(tuned[1])
    assert words.decode(encode_prompt(words, "Hi")).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
