"""A config.json with invalid values ends a run with `MODEL_INVALID`, before its first step."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.input_preparation import check_model
from finetune_trainer.inputs.base_model import FetchedModel
from finetune_trainer.inputs.resolve import DownloadedInputs
from finetune_trainer.modeling.loading import load_model, load_tokenizer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT), pytest.mark.filterwarnings("ignore")]

FAMILIES = ("llama", "gemma3", "qwen3_moe", "gpt2")
DAMAGES: dict[str, dict[str, Any]] = {
    "no heads": {"num_attention_heads": 0},
    "negative hidden size": {"hidden_size": -64},
    "huge hidden size": {"hidden_size": 2**62},
    "layers as text": {"num_hidden_layers": "two"},
    "a million layers": {"num_hidden_layers": 1_000_000},
    "negative vocabulary": {"vocab_size": -1},
    "unknown type of numbers": {"dtype": "float17"},
}
DAMAGES_OF_LLAMA: dict[str, dict[str, Any]] = {
    "hidden size of no multiple of the heads": {"hidden_size": 63},
    "more layers than weights": {"num_hidden_layers": 3},
    "empty vocabulary": {"vocab_size": 0},
    "padding outside of the vocabulary": {"pad_token_id": 1_000_000},
    "no key-value heads": {"num_key_value_heads": 0},
    "other head size": {"head_dim": 8},
    "negative intermediate size": {"intermediate_size": -1},
    "unknown activation": {"hidden_act": "none"},
    "unknown RoPE": {"rope_parameters": {"rope_type": "none", "rope_theta": 10000.0}},
    "RoPE factor as text": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": "2"}},
    "types of some layers": {"layer_types": ["full_attention"]},
    "class as text": {"architectures": "LlamaForCausalLM"},
    "list as a part": {"text_config": []},
    "list of family names": {"model_type": ["llama"]},
    "fewer layers than weights": {"num_hidden_layers": 1},
}
PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown family": ({"model_type": "nextllama"}, "does not know the model_type 'nextllama' in its config.json; use"),
    "list of family names": ({"model_type": ["llama"]}, r"does not know the model_type \['llama'\] in its config.json"),
    "unknown RoPE": (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 10000.0}},
        "does not know 'spiral', the value of rope_parameters.rope_type in its config.json",
    ),
    "unknown activation": ({"hidden_act": "bend"}, "does not know 'bend', the value of hidden_act in its config.json"),
    "parts of a text model": ({"text_config": {"hidden_size": 64}}, "has a text_config, but its model_type is"),
    "fewer layers": ({"num_hidden_layers": 1}, "has weights of the layer model.layers.1, beyond the number of layers"),
}
GENERATION_SETTINGS: dict[str, object] = {
    "eos_token_id": "x",
    "pad_token_id": True,
    "bos_token_id": [[3]],
    "max_length": "a",
    "temperature": "high",
}


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build_family(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def damage(model_dir: Path, target: Path, changes: dict[str, Any]) -> Path:
    """Copy a model with changed fields of its config, or of the config of its text part."""
    shutil.copytree(model_dir, target)
    content = json.loads((target / "config.json").read_text())
    part = content if "model_type" in changes else content.get("text_config", content)
    part.update(changes)
    (target / "config.json").write_text(json.dumps(content))
    return target


def prepare_and_load(model_dir: Path) -> None:
    """Do with the model what a run does before the first step."""
    check_model(config(), DownloadedInputs(FetchedModel(model_dir, "sha256:0", []), []), date(2026, 1, 1))
    load_model(config(), model_dir, "transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_prepare_and_load_intact_model_is_accepted(model_dirs: dict[str, Path], family: str) -> None:
    prepare_and_load(model_dirs[family])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(family, changes, id=f"{family}, {name}")
        for family in FAMILIES
        for name, changes in (DAMAGES | (DAMAGES_OF_LLAMA if family == "llama" else {})).items()
    ],
)
def test_prepare_and_load_damaged_config_is_model_invalid(
    model_dirs: dict[str, Path], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model_dir = damage(model_dirs[family], tmp_path / "damaged", changes)
    with pytest.raises(TrainerError) as caught:
        prepare_and_load(model_dir)
    assert caught.value.reason is Reason.MODEL_INVALID, caught.value.message
    assert caught.value.message.startswith("the base model"), caught.value.message
    assert "\n" not in caught.value.message
    assert "pip install" not in caught.value.message


@pytest.mark.parametrize("name", PROBLEMS)
def test_prepare_and_load_damaged_config_message_names_the_value(
    model_dirs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    changes, problem = PROBLEMS[name]
    with pytest.raises(TrainerError, match=problem) as caught:
        prepare_and_load(damage(model_dirs["llama"], tmp_path / "damaged", changes))
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_prepare_and_load_fewer_layers_than_weights_is_model_invalid(
    model_dirs: dict[str, Path], tmp_path: Path, family: str
) -> None:
    layers = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    with pytest.raises(TrainerError, match="beyond the number of layers in its") as caught:
        prepare_and_load(damage(model_dirs[family], tmp_path / "damaged", layers))
    assert caught.value.reason is Reason.MODEL_INVALID


def test_prepare_and_load_layer_of_multi_token_prediction_is_accepted(
    model_dirs: dict[str, Path], tmp_path: Path
) -> None:
    """Published models of the DeepSeek family have such a layer after the last one."""
    from safetensors.torch import load_file, save_file

    model_dir = damage(model_dirs["llama"], tmp_path / "model", {})
    weights = load_file(model_dir / "model.safetensors")
    extra = {name.replace(".1.", ".2."): weight.clone() for name, weight in weights.items() if ".layers.1." in name}
    extra["model.layers.2.eh_proj.weight"] = weights["model.layers.1.self_attn.q_proj.weight"].clone()
    save_file(weights | extra, model_dir / "model.safetensors", {"format": "pt"})
    prepare_and_load(model_dir)


@pytest.mark.parametrize("key", GENERATION_SETTINGS)
def test_prepare_and_load_damaged_generation_config_is_model_invalid(
    model_dirs: dict[str, Path], tmp_path: Path, key: str
) -> None:
    model_dir = damage(model_dirs["llama"], tmp_path / "damaged", {})
    (model_dir / "generation_config.json").write_text(json.dumps({key: GENERATION_SETTINGS[key]}))
    with pytest.raises(TrainerError, match=f"{key} in generation_config.json is .*, expected") as caught:
        prepare_and_load(model_dir)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_generate_completions_damaged_config_is_model_invalid(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    from finetune_trainer.modeling.generation import generate_completions

    model_dir = damage(model_dirs["llama"], tmp_path / "damaged", {"vocab_size": -1})
    with pytest.raises(TrainerError, match="a size in its config") as caught:
        generate_completions(model_dir, None, ["Hello"], 2)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_load_tokenizer_damaged_config_is_model_invalid(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    model_dir = damage(model_dirs["llama"], tmp_path / "damaged", {"num_attention_heads": 0})
    with pytest.raises(TrainerError, match="tokenizer cannot be loaded: transformers fails with Zero") as caught:
        load_tokenizer(model_dir)
    assert caught.value.reason is Reason.MODEL_INVALID
