"""Tests of which model folders are accepted, and of the settings with which they are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config, tokenizer

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_files import check_model_dir
from finetune_trainer.modeling.backends import choose_backend
from finetune_trainer.modeling.library_errors import translate_memory_errors
from finetune_trainer.modeling.loading import (
    check_vocabulary,
    load_model,
    load_tokenizer,
)
from finetune_trainer.modeling.precision import resolve_precision

INDEX = "model.safetensors.index.json"


def make_model_dir(folder: Path) -> Path:
    """The files that are checked before anything is loaded."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_json(name: str, **content: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def remove_files(*names: str, then: Callable[[Path], Any] = lambda folder: None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        then(folder)

    return change


def add_shards(folder: Path) -> None:
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"")
    write_json(INDEX, weight_map={"a": "model-00001-of-00001.safetensors"})(folder)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda folder: (folder / "modeling_x.py").write_text(""), "modeling_x.py is code"),
    "code further down": (
        lambda folder: shutil.copytree(folder, folder / "sub") and (folder / "sub" / "x.py").write_text(""),
        "sub/x.py is code",
    ),
    "auto_map": (write_json("config.json", auto_map={}), r"config.json refers to code \(auto_map\)"),
    "auto_map of an unknown model": (
        write_json("config.json", model_type="x", auto_map={}),
        "use a model whose model_type",
    ),
    "auto_map of a part": (write_json("config.json", text_config={"auto_map": {}}), "refers to code"),
    "tokenizer's auto_map": (write_json("tokenizer_config.json", auto_map={}), "tokenizer_config.json refers to code"),
    "a kernel from the hub": (write_json("config.json", attn_implementation="someone/kernel"), "refers to code"),
    "internal kernel": (write_json("config.json", _attn_implementation_internal="x"), "refers to code"),
    "an adapter": (write_json("adapter_config.json"), "it is an adapter"),
    "no config": (remove_files("config.json"), "config.json is missing"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "no tokenizer": (remove_files("tokenizer.json"), "no tokenizer"),
    "no weights": (remove_files("model.safetensors"), r"no \*.safetensors file$"),
    "pickle": (
        remove_files("model.safetensors", then=lambda folder: (folder / "pytorch_model.bin").write_bytes(b"")),
        "pytorch_model.bin is a pickle, which can run code when loaded",
    ),
    "weights of another name": (
        remove_files("model.safetensors", then=lambda folder: (folder / "x.safetensors").write_bytes(b"")),
        "expected the weights in model.safetensors",
    ),
    "missing shards": (
        write_json(INDEX, weight_map={"a": "1.safetensors", "b": "model.safetensors", "c": "2.safetensors"}),
        "2 of 3 weight files are missing, the first is 1.safetensors",
    ),
    "shard elsewhere": (
        write_json(INDEX, weight_map={"a": "../model.safetensors"}),
        "is not a safetensors file",
    ),
    "unsharded model in addition to shards": (add_shards, "both model.safetensors and model.safetensors.index.json"),
    "index without shards": (write_json(INDEX), "has no weight_map"),
}


@pytest.mark.parametrize(("change", "expected_message"), REFUSED.values(), ids=REFUSED)
def test_check_model_dir_invalid_folder_is_refused(
    tmp_path: Path, change: Callable[[Path], Any], expected_message: str
) -> None:
    folder = make_model_dir(tmp_path / "model")
    check_model_dir(folder)
    change(folder)
    with pytest.raises(TrainerError, match=expected_message) as caught:
        check_model_dir(folder)
    assert caught.value.reason is Reason.MODEL_INVALID


QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "AWQ": ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    "compressed tensors": ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "fp4": ({"quantization_config": {"load_in_4bit": True}}, "fp4"),
    "no method": ({"quantization_config": {}}, "an unknown method"),
    "no object": ({"quantization_config": "x"}, "an unknown method"),
    "in a part": (
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        "fp8, in its text part only",
    ),
}


@pytest.mark.parametrize(("content", "method"), QUANTIZED.values(), ids=QUANTIZED)
def test_check_model_dir_unknown_quantization_is_refused_by_name(
    tmp_path: Path, content: dict[str, Any], method: str
) -> None:
    folder = make_model_dir(tmp_path / "model")
    write_json("config.json", **content)(folder)
    with pytest.raises(TrainerError) as caught:
        check_model_dir(folder)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert caught.value.message == (
        f"the weights of the base model are quantized with {method} (quantization_config in config.json), which the "
        "trainer cannot train on; set model.uri to the original, unquantized model, and model.quantization to nf4 to "
        "save memory"
    )


@pytest.mark.parametrize(
    ("content", "obstacle"),
    [
        ({"model_type": "llama"}, None),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, None),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "stored in mxfp4"),
        ({"vision_config": {}}, "a multimodal model"),
        ({"audio_config": {}}, "a multimodal model"),
    ],
)
def test_choose_backend_unsloth_depends_on_model(content: dict[str, Any], obstacle: str | None) -> None:
    requested = config({"backend": "unsloth"})
    if obstacle is None:
        assert choose_backend(requested, lambda: content) == "unsloth"
        return
    with pytest.raises(TrainerError) as caught:
        choose_backend(requested, lambda: content)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message == (
        f"training.backend is unsloth, but the base model is {obstacle}; use transformers or auto"
    )


def test_check_model_dir_sharded_model_is_accepted(tmp_path: Path) -> None:
    folder = make_model_dir(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_json(INDEX, weight_map={"a": "model-00001-of-00001.safetensors"})(folder)
    check_model_dir(folder)


def test_check_model_dir_index_of_single_file_is_accepted(tmp_path: Path) -> None:
    folder = make_model_dir(tmp_path / "model")
    write_json(INDEX, weight_map={"a": "model.safetensors"})(folder)
    check_model_dir(folder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestLoading:
    def test_check_model_dir_saved_model_is_accepted(self, model_dir: Path) -> None:
        check_model_dir(model_dir)

    def test_load_model_adapts_all_linear_layers_only(self, model_dir: Path) -> None:
        model = load_model(config({"lora": {"rank": 4, "alpha": 6}}), model_dir, "transformers")
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert len(trained) == 2 * 7 * 2  # layers, projections, A and B
        assert all(".lora_" in name for name in trained)
        assert not any("lm_head" in name for name in trained)
        adapter = model.peft_config["default"]
        assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout, adapter.bias) == (4, 6, 0, "none")

    def test_load_model_named_targets_only_are_adapted(self, model_dir: Path) -> None:
        model = load_model(config({"lora": {"targetModules": ["q_proj"]}}), model_dir, "transformers")
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert len(trained) == 2 * 2
        assert all("q_proj" in name for name in trained)

    def test_load_model_broken_weights_are_model_invalid(self, model_dir: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(model_dir, tmp_path / "broken")
        (broken / "model.safetensors").write_bytes(b"no such thing")
        with pytest.raises(TrainerError) as caught:
            load_model(config(), broken, "transformers")
        assert caught.value.reason is Reason.MODEL_INVALID

    def test_load_model_missing_weights_are_model_invalid(self, model_dir: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        broken = shutil.copytree(model_dir, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        norm, head = weights["model.norm.weight"], weights["lm_head.weight"]
        short = {**weights, "model.norm.weight": norm[:3].clone()}
        for wrong in (short, {"lm_head.weight": head}):
            save_file(wrong, broken / "model.safetensors", {"format": "pt"})
            with pytest.raises(TrainerError, match=r"does not match its config.json: \d+ mis") as caught:
                load_model(config(), broken, "transformers")
            assert caught.value.reason is Reason.MODEL_INVALID

    def test_check_vocabulary_other_tokenizer_is_refused(self, model_dir: Path) -> None:
        words = load_tokenizer(model_dir)
        size = len(words)
        words.add_tokens(["<another>"])
        with pytest.raises(
            TrainerError, match=f"for {size} tokens, .* '<another>' of its tokenizer has the ID {size};"
        ):
            check_vocabulary(words, size)

    @pytest.mark.parametrize(
        ("pad", "eos", "expected"),
        {
            "its own": ("<|pad|>", "<|im_end|>", "<|pad|>"),
            "none": (None, "<|im_end|>", "<|pad|>"),
            "the same as EOS": ("<|im_end|>", "<|im_end|>", "<|pad|>"),
        }.values(),
    )
    def test_load_tokenizer_padding_differs_from_eos(
        self, tmp_path: Path, pad: str | None, eos: str, expected: str
    ) -> None:
        words = tokenizer()
        words.pad_token, words.eos_token = pad, eos
        words.save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == (expected, eos, "right")
        assert len(loaded) == len(words)  # no token was added, for which the model has no embedding

    def test_load_tokenizer_missing_is_model_invalid(self, tmp_path: Path) -> None:
        with pytest.raises(TrainerError) as caught:
            load_tokenizer(tmp_path)
        assert caught.value.reason is Reason.MODEL_INVALID

    def test_choose_backend_without_gpu_is_transformers_fp32(self) -> None:
        assert choose_backend(config()) == "transformers"
        assert choose_backend(config({"backend": "unsloth"})) == "unsloth"
        assert resolve_precision(config()) == "fp32"
        with pytest.raises(TrainerError, match="fp16 needs a GPU"):
            resolve_precision(config({"precision": "fp16"}))

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")],
    )
    def test_memory_errors_become_out_of_memory(self, error: Exception) -> None:
        with pytest.raises(TrainerError, match="not enough memory to try") as caught, translate_memory_errors("try"):
            raise error
        assert caught.value.reason is Reason.OUT_OF_MEMORY

    def test_load_tokenizer_config_chat_template_is_used(self, model_dir: Path) -> None:
        settings = config().model.model_copy(
            update={"chat_template": "{% for m in messages %}{{ m.content }}!{% endfor %}"}
        )
        words = load_tokenizer(model_dir, settings)
        assert words.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"

    def test_memory_errors_other_errors_pass_through(self) -> None:
        with pytest.raises(RuntimeError, match="shapes"), translate_memory_errors("try"):
            raise RuntimeError("shapes do not match")
