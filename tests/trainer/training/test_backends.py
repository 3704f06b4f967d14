"""Losses of each backend compared with those of TRL and Unsloth themselves, and the backend that `auto` chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer import plain_trl_training
from tests.support.trainer.tiny_model import QUIET_ENV, TRAINING_TIMEOUT, chat, config
from tests.support.trainer.tiny_training import ROWS_BY_METHOD, RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import backends
from finetune_trainer.modeling.backends import check_unsloth, choose_backend

pytestmark = [pytest.mark.training, pytest.mark.timeout(2 * TRAINING_TIMEOUT)]

CHATS = [chat(f"What is {number}?", f"It is {'very ' * (number % 5)}{number}.") for number in range(10)]


FILES = {
    "tokens": [
        dict(zip(ROWS_BY_METHOD["sft"], row, strict=True)) for row in zip(*ROWS_BY_METHOD["sft"].values(), strict=True)
    ],
    "chats": CHATS,
}


@pytest.fixture(scope="module", params=["transformers", "unsloth"])
def direct_losses(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, list[float]]]:
    """Return a backend, and the losses of plain_trl_training.py with its library by kind of rows."""
    folder = tmp_path_factory.mktemp("direct")
    for name, rows in FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = "unsloth" if request.param == "unsloth" else "trl"
    environment = {**os.environ, **QUIET_ENV, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"UNSLOTH_DISABLE_STATISTICS": "1"}
    line = [sys.executable, plain_trl_training.__file__, script, str(model_dir), str(folder / "out"), *FILES]
    done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "out").read_text())
    return request.param, dict(zip(FILES, results, strict=True))


@pytest.mark.parametrize("rows", FILES)
def test_backend_losses_match_plain_script(
    run: RunTraining, direct_losses: tuple[str, dict[str, list[float]]], rows: str
) -> None:
    backend, expected = direct_losses
    shape = {"backend": backend, "maxSteps": 4, "batchSize": 4, "gradientAccumulation": 1, "warmupRatio": 0}
    ours = run(**shape) if rows == "tokens" else run(rows=CHATS, loss="all", **shape)
    assert ours.losses == pytest.approx(expected[rows], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({}, {}),
        ({"rows": CHATS, "loss": "all"}, {}),
        ({"rows": CHATS}, {}),
        ({"lora": {"variant": "rslora"}}, {}),
        ({"lora": {"variant": "dora"}}, {}),
        ({"lora": {"dropout": 0.1}}, {}),
        ({}, {"quantization": "nf4"}),
        ({"method": "dpo"}, {}),
        ({"method": "kto"}, {}),
        ({"gradientAccumulation": 2}, {}),
        ({"gradientCheckpointing": True}, {}),
        ({"batching": "packed", "batchSize": 2}, {"max_length": 24}),
    ],
    ids=[
        "completions",
        "all",
        "prepared",
        "rslora",
        "dora",
        "dropout",
        "nf4",
        "dpo",
        "kto",
        "parts",
        "recomputed",
        "packed",
    ],
)
def test_backends_learn_the_same(run: RunTraining, settings: dict[str, Any], source: dict[str, Any]) -> None:
    plain, unsloth = (
        run(backend=backend, source=source, validate=True, **settings) for backend in ("transformers", "unsloth")
    )
    assert plain.losses == pytest.approx(unsloth.losses, abs=1e-4)
    assert plain.trainable == unsloth.trainable
    assert plain.metrics.keys() == unsloth.metrics.keys()
    for name in plain.metrics.keys() - {"trainSeconds", "tokensPerSecond"}:
        assert plain.metrics[name] == pytest.approx(unsloth.metrics[name], abs=1e-4), name
    assert {name: each.shape for name, each in plain.weights.items()} == {
        name: each.shape for name, each in unsloth.weights.items()
    }
    texts = [(each.folder / "adapter" / "adapter_config.json").read_text() for each in (plain, unsloth)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("training", "quantization", "chosen", "why"),
    [
        ({}, "none", "transformers", "there is no GPU"),
        ({"method": "dpo"}, "none", "transformers", "auto uses it for method dpo"),
        ({"method": "kto"}, "none", "transformers", "auto uses it for method kto"),
        ({"packing": True}, "none", "transformers", "auto uses it for rows that share sequences"),
        ({}, "int8", "transformers", "auto uses it for int8"),
        ({"backend": "transformers"}, "none", "transformers", "requested"),
        ({"backend": "unsloth", "method": "dpo"}, "none", "unsloth", "requested"),
    ],
)
def test_choose_backend_is_logged_with_reason(
    caplog: pytest.LogCaptureFixture, training: dict[str, Any], quantization: str, chosen: str, why: str
) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    asked = config(training)
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"quantization": quantization})})
    assert choose_backend(asked) == chosen
    assert [each for each in caplog.messages if each.startswith(f"backend {chosen}: {why}")] == caplog.messages


@pytest.mark.parametrize("setting", ["targetParameters", "trainableTokens"])
def test_choose_backend_parameters_and_tokens_are_named_in_the_log(
    caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    assert choose_backend(config({"lora": {"rank": 4, setting: ["x"]}})) == "transformers"
    assert caplog.messages == ["backend transformers: auto uses it for targetParameters and trainableTokens"]


@pytest.mark.parametrize(
    ("lora", "settings", "world_size", "problem"),
    [
        ({}, {}, 2, "single process only"),
        ({"trainableTokens": ["x"]}, {}, 1, "neither training.lora.targetParameters nor trainableTokens"),
        ({"targetParameters": ["x"]}, {}, 1, "neither training.lora.targetParameters nor trainableTokens"),
        ({}, {"vision_config": {}}, 1, "a multimodal model"),
        ({}, {"quantization_config": {"quant_method": "fp8"}}, 1, "stored in fp8"),
    ],
    ids=["ranks", "tokens", "parameters", "multimodal", "fp8"],
)
def test_check_unsloth_refuses_without_unsloth_what_a_run_refuses(
    monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], settings: dict[str, Any], world_size: int, problem: str
) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda _: None)
    asked = config({"backend": "unsloth", "lora": {"rank": 4, **lora}})
    with pytest.raises(TrainerError, match=problem) as caught:
        check_unsloth(asked, lambda: settings, world_size)
    assert caught.value.reason is Reason.CONFIG_INVALID
    check_unsloth(config({"backend": "unsloth"}), dict, 1)
