"""Packing is refused for models that let a row see its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, chat
from tests.support.trainer.tiny_training import RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

SHORT = {"maxSteps": 2, "batchSize": 1, "lora": {"targetModules": ["q_proj"]}}
GPT2 = {"lora": {"targetModules": ["c_attn"]}}
BLOOM = {"lora": {"targetModules": ["query_key_value"]}}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # GPT-2's layers are stored the other way round
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("gemma2", {}),
        ("gemma3n_text", {}),
        ("mixtral", {}),
        ("qwen3_moe", {}),
        ("gpt2", GPT2),
    ],
    ids=["llama", "qwen3", "gemma2", "gemma3n_text", "mixtral", "qwen3_moe", "gpt2"],
)
def test_packing_preflight_separating_model_is_accepted(
    run: RunTraining, tmp_path: Path, family: str, targets: dict[str, object], batch: int
) -> None:
    base = build_family(tmp_path / family, family)
    trained = run(base, packing=True, source={"max_length": 24}, **SHORT | targets | {"batchSize": batch})
    assert len(trained.losses) == 2


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("family", "targets"),
    [("gpt_oss", {}), ("bamba", {}), ("granitemoehybrid", {}), ("opt", {}), ("bloom", BLOOM)],
    ids=["gpt_oss", "bamba", "granitemoehybrid", "opt", "bloom"],
)
def test_packing_preflight_mixing_model_is_refused(
    run: RunTraining, tmp_path: Path, family: str, targets: dict[str, object], batch: int
) -> None:
    base = build_family(tmp_path / family, family)
    expected = r"training\.packing: .*(mixes packed rows.* packed and .* alone|accepts no position IDs)"
    with pytest.raises(TrainerError, match=f"{expected}.*; set training.packing to false") as caught:
        run(base, packing=True, **SHORT | targets | {"batchSize": batch})
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_packing_preflight_attention_chunks_across_rows_are_refused(run: RunTraining, tmp_path: Path) -> None:
    base = build_family(tmp_path / "llama4", "llama4_text")  # its chunks of 64 tokens do not begin with the rows
    rows = [chat("x", f"{word} " * 20) for word in ("red", "blue", "green", "black")]
    with pytest.raises(TrainerError, match=r"training\.packing: .*change by 0 nats .*; set training.packing to false"):
        run(base, packing=True, rows=rows, source={"max_length": 512}, **SHORT)


def test_packing_preflight_padding_free_mixing_model_is_refused(run: RunTraining, tmp_path: Path) -> None:
    base = build_family(tmp_path / "opt", "opt")
    expected = "training.batching paddingFree: .* packed rows.*; set training.batching to padded or byLength"
    with pytest.raises(TrainerError, match=expected):
        run(base, batching="paddingFree", **SHORT | {"batchSize": 2})
    assert len(run(base, batching="paddingFree", **SHORT).losses) == 2  # one row is a sequence of its own


def test_packing_preflight_without_packing_is_skipped(run: RunTraining, tmp_path: Path) -> None:
    assert len(run(build_family(tmp_path / "gpt_oss", "gpt_oss"), **SHORT).losses) == 2


def test_packing_preflight_single_row_sequences_are_accepted(run: RunTraining, tmp_path: Path) -> None:
    rows = [chat("x", f"{word} " * 20) for word in ("red", "blue")]
    settings = {"rows": rows, "source": {"max_length": 128}, "gradientCheckpointing": False, **SHORT}
    assert len(run(build_family(tmp_path / "opt", "opt"), packing=True, **settings).losses) == 2
