"""Tests of `plan` and `run` with models that do not support the config or the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat

from finetune_trainer.contract import Reason, Stage, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import read_model_settings
from finetune_trainer.pipeline import run
from finetune_trainer.planning.plan import build_plan
from finetune_trainer.planning.plan_text import to_text
from finetune_trainer.run_setup import resolve_run
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = [
    pytest.mark.s3,
    pytest.mark.training,
    pytest.mark.timeout(TRAINING_TIMEOUT),
    # PEFT notes that GPT-2's layers are stored the other way round, and takes care of it.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]

POSITIONS = 50
WORDS = ("ink", "oak", "tin", "fog", "elm", "ice")
SHORT = [chat(f"What is {word}?", word) for word in WORDS]
LONG = [chat(f"What is {word}?", f"{word} " * 90) for word in WORDS]


@pytest.fixture
def make_config(s3: S3Server, tmp_path: Path) -> Callable[..., TrainerConfig]:
    """Return a function that stores a model and rows, and returns the configuration of a run with them."""
    name = tmp_path.name

    def make_config(model: Path, rows: list[Any], held_out: list[Any], **spec: Any) -> TrainerConfig:
        for path in model.iterdir():
            s3.put(f"s3://models/{name}/{path.name}", path.read_bytes())
        for side, content in (("train", rows), ("val", held_out)):
            s3.put(f"s3://data/{name}-{side}.jsonl", "\n".join(map(json.dumps, content)).encode())
        content: dict[str, Any] = {
            "model": {"uri": f"s3://models/{name}/", "maxLength": 256},
            "dataset": {
                "sources": [{"uri": f"s3://data/{name}-train.jsonl"}],
                "validation": {"sources": [{"uri": f"s3://data/{name}-val.jsonl"}]},
            },
            "training": {"maxSteps": 2, "batchSize": 2, "gradientAccumulation": 1, "backend": "transformers"},
            "output": {"uri": f"s3://results/{name}"},
            "storage": {"endpoint": s3.endpoint},
        }
        return TrainerConfig.model_validate(content | spec)

    return make_config


def test_run_texts_beyond_positions_completes(
    make_config: Callable[..., TrainerConfig], s3: S3Server, tmp_path: Path
) -> None:
    model = build_family(tmp_path / "gpt2", "gpt2", max_position_embeddings=POSITIONS)
    evaluation = {"samplePrompts": ["Hi", "word " * 90], "maxNewTokens": 4, "bias": {}}
    output = {"uri": f"s3://results/{tmp_path.name}", "merged": True}  # the merge is judged by the loss on general text
    held_out = [chat("And you?", "I am"), *LONG]
    config = make_config(model, [*SHORT, *LONG], held_out, evaluation=evaluation, output=output)
    plan = build_plan(config, tmp_path)
    outcome = run(resolve_run(config), tmp_path, OutcomeRecorder(ProgressReporter()))
    assert outcome.reason is Reason.COMPLETED
    assert outcome.result is not None
    assert outcome.result.merged_uri == f"s3://results/{tmp_path.name}/merged"
    stored = json.loads(s3.get(f"s3://results/{tmp_path.name}/manifest.json"))
    assert stored["config"]["model"]["maxLength"] == 256
    assert stored["dataset"] == plan.dataset.to_json()
    assert plan.dataset.rejected["overlength"] >= len(LONG)
    assert (plan.max_length, plan.positions_limit_length) == (POSITIONS, True)
    assert f"{POSITIONS} tokens, the base model's positions" in to_text(plan)
    judged = json.loads(s3.get(f"s3://results/{tmp_path.name}/evaluation.json"))
    assert judged["missing"][0] == f"sample prompts: 1 of 2 exceed the {POSITIONS} positions of the model"
    assert [sample["turns"][0]["text"] for sample in judged["samples"]] == ["Hi"]
    assert any("more tokens than the model has positions" in note for note in judged["bias"]["notes"])


def test_plan_and_run_no_row_fits_name_positions(make_config: Callable[..., TrainerConfig], tmp_path: Path) -> None:
    config = make_config(build_family(tmp_path / "gpt2", "gpt2", max_position_embeddings=POSITIONS), LONG, SHORT)
    expected = f"6 overlength.* tokens, the base model has positions for {POSITIONS}"
    for attempt in (
        lambda: build_plan(config, tmp_path),
        lambda: run(resolve_run(config), tmp_path, OutcomeRecorder(ProgressReporter())),
    ):
        with pytest.raises(TrainerError, match=expected) as caught:
            attempt()
        assert caught.value.reason is Reason.DATASET_EMPTY


@pytest.mark.parametrize("gap", [0, 5], ids=["one more", "after a gap"])
def test_plan_and_run_token_without_embedding_is_refused(
    make_config: Callable[..., TrainerConfig], tmp_path: Path, gap: int
) -> None:
    model = build(tmp_path / "tiny")
    content = json.loads((model / "tokenizer.json").read_text())
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    content["added_tokens"].append({**content["added_tokens"][-1], "content": "<new>", "id": rows + gap})
    content["model"]["vocab"]["<new>"] = rows + gap
    (model / "tokenizer.json").write_text(json.dumps(content))
    config, recorder = make_config(model, SHORT, LONG), OutcomeRecorder(ProgressReporter())
    for attempt in (lambda: build_plan(config, tmp_path), lambda: run(resolve_run(config), tmp_path, recorder)):
        with pytest.raises(
            TrainerError, match=f"for {rows} tokens, .* '<new>' of its tokenizer has the ID {rows + gap}"
        ) as caught:
            attempt()
        assert caught.value.reason is Reason.MODEL_INVALID
    assert recorder.progress.get_latest().stage is Stage.PREPARING


def test_plan_and_run_option_that_family_does_not_support_is_refused(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    packed = {"maxSteps": 2, "packing": True}
    config = make_config(build_family(tmp_path / "model", "gpt_oss"), SHORT, SHORT, training=packed)
    resolved, recorder = resolve_run(config), OutcomeRecorder(ProgressReporter())
    assert read_model_settings(resolved.inputs.model)["model_type"] == "gpt_oss"
    for attempt in (lambda: build_plan(config, tmp_path), lambda: run(resolved, tmp_path, recorder)):
        with pytest.raises(TrainerError, match=r"does not support training\.packing, .*; set it to false") as caught:
            attempt()
        assert caught.value.reason is Reason.CONFIG_INVALID
    assert recorder.progress.get_latest().stage is Stage.PREPARING
