"""Tests of GGUF files that the real converter writes from tiny models, and of the check that detects wrong ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.contract import LLAMA_CPP_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.export import export_adapter
from finetune_trainer.publishing.gguf_check import check_adapter
from finetune_trainer.publishing.gguf_converter import Converter, find_converters
from finetune_trainer.publishing.gguf_files import GgufSources, create_gguf_files
from finetune_trainer.publishing.gguf_reader import read_gguf
from local_cluster.converters import ensure_converters

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def converter() -> Converter:
    return Converter(ensure_converters(), lambda: None)


def make_adapter(folder: Path, model_dir: Path, **lora: Any) -> Path:
    settings = config({"precision": "fp32", "lora": lora})
    export_adapter(settings, load_tuned_model(settings, model_dir), folder, "sha256:abc", model_dir)
    return folder


@pytest.fixture(scope="module")
def converted(model_dir: Path, converter: Converter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of rank 8, whose B matrices do not fit q8_0, and its GGUF files."""
    folder = tmp_path_factory.mktemp("converted")
    sources = GgufSources(make_adapter(folder / "adapter", model_dir, rank=8, alpha=24), model_dir)
    create_gguf_files(sources, "q8_0", converter, folder / "gguf")
    return folder


def test_create_gguf_files_rank_8_as_q8_0_stores_second_matrices_as_f16(converted: Path) -> None:
    gguf = read_gguf(converted / "gguf" / "adapter-q8_0.gguf")
    assert gguf.metadata["adapter.lora.alpha"] == 24
    assert (gguf.metadata["general.type"], gguf.metadata["adapter.type"]) == ("adapter", "lora")
    types = {name.rpartition(".")[2]: tensor.type_name for name, tensor in gguf.tensors.items()}
    assert types == {"lora_a": "q8_0", "lora_b": "f16"}
    assert gguf.tensors["blk.0.attn_q.weight.lora_a"].shape[0] == 8
    lines = (converted / "gguf" / "Modelfile").read_text().splitlines()
    assert lines[2:4] == ["FROM ./base.gguf", "ADAPTER ./adapter-q8_0.gguf"]
    assert lines[4].startswith('TEMPLATE """{{ range .Messages }}')


def test_create_gguf_files_rslora_has_alpha_that_gives_its_scale(
    model_dir: Path, converter: Converter, tmp_path: Path
) -> None:
    adapter_dir = make_adapter(tmp_path / "adapter", model_dir, rank=32, variant="rslora")
    create_gguf_files(GgufSources(adapter_dir, model_dir), "q8_0", converter, tmp_path / "gguf")
    gguf = read_gguf(tmp_path / "gguf" / "adapter-q8_0.gguf")
    assert gguf.metadata["adapter.lora.alpha"] / 32 == pytest.approx(32 / math.sqrt(32))
    assert {tensor.type_name for tensor in gguf.tensors.values()} == {"q8_0"}


def test_create_gguf_files_twice_writes_same_bytes(
    model_dir: Path, converter: Converter, converted: Path, tmp_path: Path
) -> None:
    create_gguf_files(GgufSources(converted / "adapter", model_dir), "q8_0", converter, tmp_path / "gguf")
    for path in (converted / "gguf").iterdir():
        assert (tmp_path / "gguf" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", ["value", "alpha", "missing"])
def test_check_adapter_wrong_file_is_refused(converted: Path, tmp_path: Path, change: str) -> None:
    from safetensors.torch import load_file, save_file

    path, alpha = converted / "gguf" / "adapter-q8_0.gguf", 24.0
    adapter_dir = shutil.copytree(converted / "adapter", tmp_path / "adapter")
    check_adapter(path, adapter_dir, alpha)
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    name = sorted(weights)[5]
    if change == "value":
        weights[name][0, 0] += 0.1
    elif change == "missing":
        weights["base_model.model.more.lora_A.weight"] = weights[name].clone()
    else:
        alpha = 16.0
    save_file(weights, adapter_dir / "adapter_model.safetensors")
    with pytest.raises(TrainerError, match="differs from what it was converted from") as error:
        check_adapter(path, adapter_dir, alpha)
    assert error.value.reason is Reason.INTERNAL_ERROR


def test_create_gguf_files_dora_is_refused(model_dir: Path, converter: Converter, tmp_path: Path) -> None:
    adapter_dir = make_adapter(tmp_path / "adapter", model_dir, variant="dora")
    with pytest.raises(TrainerError, match=r"llama.cpp loads no adapters with DoRA") as error:
        create_gguf_files(GgufSources(adapter_dir, model_dir), "f16", converter, tmp_path / "gguf")
    assert error.value.reason is Reason.MODEL_UNSUPPORTED


def test_convert_adapter_unknown_architecture_is_named(model_dir: Path, converter: Converter, tmp_path: Path) -> None:
    adapter_dir = make_adapter(tmp_path / "adapter", model_dir, rank=8)
    base = shutil.copytree(model_dir, tmp_path / "base")
    settings = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps(settings | {"architectures": ["MadeUpForCausalLM"]}))
    with pytest.raises(TrainerError, match="cannot convert models of the architecture MadeUpForCausalLM") as error:
        create_gguf_files(GgufSources(adapter_dir, base), "f16", converter, tmp_path / "gguf")
    assert error.value.reason is Reason.MODEL_UNSUPPORTED


def test_create_gguf_files_unknown_tokenizer_of_merged_model_keeps_adapter(
    converted: Path, model_dir: Path, converter: Converter, tmp_path: Path
) -> None:
    missing = create_gguf_files(
        GgufSources(converted / "adapter", model_dir, model_dir), "q8_0", converter, tmp_path / "gguf"
    )
    assert missing.keys() == {"model-q8_0.gguf"}
    assert "does not know the tokenizer" in missing["model-q8_0.gguf"]
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {"adapter-q8_0.gguf", "Modelfile"}
    assert "ADAPTER ./adapter-q8_0.gguf" in (tmp_path / "gguf" / "Modelfile").read_text()


def test_create_gguf_files_unknown_tokenizer_is_refused(model_dir: Path, converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="does not know the tokenizer of this model"):
        create_gguf_files(GgufSources(None, model_dir, model_dir), "f16", converter, tmp_path / "gguf")


def test_find_converters_missing_folder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LLAMA_CPP_ENV, str(tmp_path))
    with pytest.raises(TrainerError, match=r"has no convert_hf_to_gguf.py: .* set FINETUNE_LLAMA_CPP to DIR"):
        find_converters()


def test_read_gguf_truncated_file_is_refused(converted: Path, tmp_path: Path) -> None:
    content = (converted / "gguf" / "adapter-q8_0.gguf").read_bytes()
    path = tmp_path / "a.gguf"
    for length in (2, 40, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"GGUF|truncated"):
            read_gguf(path)
