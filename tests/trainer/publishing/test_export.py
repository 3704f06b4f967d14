"""Tests of the files in the folder that is published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, config
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.contract import ModelSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.export import export_adapter, list_target_modules

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


def test_export_folder_is_complete_without_local_paths(model_dir: Path, tmp_path: Path) -> None:
    export_adapter(config(), load_tuned_model(config(), model_dir), tmp_path / "adapter", "sha256:abc", model_dir)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == FILES
    for path in (tmp_path / "adapter").iterdir():
        assert str(model_dir).encode() not in path.read_bytes(), path.name
        assert b"local_files" not in path.read_bytes(), path.name
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == CHATML
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]  # no paths


@pytest.mark.parametrize(
    ("uri", "name", "revision"),
    [
        ("s3://models/tiny", "s3://models/tiny", None),
        ("pvc://claim/tiny", "pvc://claim/tiny", None),
        ("hf://org/tiny", "org/tiny", COMMIT),
    ],
)
def test_export_names_base_model_for_servers(
    model_dir: Path, tmp_path: Path, uri: str, name: str, revision: str | None
) -> None:
    settings = config({"lora": {"rank": 4, "alpha": 8, "targetModules": ["v_proj", "q_proj"]}})
    settings = settings.model_copy(update={"model": ModelSource(uri=uri)})
    export_adapter(settings, load_tuned_model(settings, model_dir), tmp_path, COMMIT, model_dir)
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (name, revision)
    assert (adapter["r"], adapter["lora_alpha"], adapter["target_modules"]) == (4, 8, ["q_proj", "v_proj"])
    assert (adapter["peft_type"], adapter["task_type"], adapter["inference_mode"]) == ("LORA", "CAUSAL_LM", True)


def test_target_modules_same_name_is_not_included(model_dir: Path) -> None:
    settings = config({"lora": {"targetModules": ["model.layers.0.self_attn.q_proj"]}})
    assert list_target_modules(load_tuned_model(settings, model_dir).model) == ["model.layers.0.self_attn.q_proj"]


def test_export_reloaded_adapter_matches_model_in_memory(model_dir: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = load_tuned_model(config(), model_dir)
    export_adapter(config(), loaded, tmp_path, "sha256:abc", model_dir)
    tokens = torch.arange(20).reshape(2, 10)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        plain = base(input_ids=tokens).logits
        again = PeftModel.from_pretrained(base, tmp_path)(input_ids=tokens).logits
        memory = loaded.model(input_ids=tokens).logits
    assert torch.equal(again, memory)
    assert not torch.allclose(again, plain)


def test_export_leaves_model_in_memory_unchanged(model_dir: Path, tmp_path: Path) -> None:
    loaded = load_tuned_model(config(), model_dir)
    before = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}
    export_adapter(config(), loaded, tmp_path, "sha256:abc", model_dir)
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert list(loaded.model.peft_config) == ["default"]


def test_export_same_run_writes_same_bytes(model_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_adapter(config(), load_tuned_model(config(), model_dir), tmp_path / name, "sha256:abc", model_dir)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.0, Reason.INTERNAL_ERROR), (math.nan, Reason.NON_FINITE_LOSS)],
    ids=["unchanged", "not a number"],
)
def test_export_unchanged_or_nan_adapter_is_refused(
    model_dir: Path, tmp_path: Path, value: float, reason: Reason
) -> None:
    loaded = load_tuned_model(config(), model_dir)
    for name, weight in loaded.model.named_parameters():
        if ".lora_B." in name:
            weight.data.fill_(value)
    with pytest.raises(TrainerError) as caught:
        export_adapter(config(), loaded, tmp_path / "adapter", "sha256:abc", model_dir)
    assert caught.value.reason is reason
    assert not list((tmp_path / "adapter").iterdir())


def test_export_file_differing_from_memory_is_refused(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    loaded = load_tuned_model(config(), model_dir)
    save = loaded.model.save_pretrained

    def save_damaged(folder: str, **options: Any) -> None:
        save(folder, **options)
        path = Path(folder) / "adapter_model.safetensors"
        save_file({name: weight * 1.5 for name, weight in load_file(path).items()}, path, {"format": "pt"})

    monkeypatch.setattr(loaded.model, "save_pretrained", save_damaged)
    with pytest.raises(
        TrainerError, match=r"the adapter of 14 modules differs after it is loaded .*down_proj.*targetModules"
    ) as caught:
        export_adapter(config(), loaded, tmp_path, "sha256:abc", model_dir)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
