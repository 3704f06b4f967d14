"""Base models whose weights are stored quantized are trained as if they had been quantized or converted by the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config, tokenizer
from tests.support.trainer.tiny_training import RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_files import check_model_dir
from finetune_trainer.modeling.loading import load_model
from finetune_trainer.planning.model_shape import compute_model_shape

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

SETTINGS = {"maxSteps": 2, "batchSize": 8, "warmupRatio": 0}
KEPT_MODULE = "model.layers.0.self_attn.o_proj"
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def copy_model(source: Path, target: Path, weights: dict[str, Any], quantization: dict[str, Any] | None) -> Path:
    """Copy a model with other weights, and say how they are quantized."""
    from safetensors.torch import save_file

    shutil.copytree(source, target)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | {"quantization_config": quantization}))
    return target


def store_fp8(source: Path, folder: Path) -> tuple[Path, Path]:
    """Return a model with weights in fp8, in blocks of 32 x 32, and one with the same weights in 32 bits.

    One module keeps its precision, as in published models.
    """
    import torch
    from safetensors.torch import load_file

    plain, stored = load_file(source / "model.safetensors"), {}
    for name in [name for name in plain if "proj" in name and not name.startswith(KEPT_MODULE)]:
        rows, columns = plain[name].shape
        blocks = plain[name].reshape(rows // 32, 32, columns // 32, 32)
        scales = blocks.abs().amax((1, 3)) / 448
        scale = scales.repeat_interleave(32, 0).repeat_interleave(32, 1)
        stored[name], stored[f"{name}_scale_inv"] = (plain[name] / scale).to(torch.float8_e4m3fn), scales
        plain[name] = stored[name].float() * scale
    method = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head", KEPT_MODULE]}
    return copy_model(source, folder / "fp8", plain | stored, method), copy_model(source, folder / "plain", plain, None)


def store_mxfp4(source: Path, folder: Path) -> tuple[Path, Path]:
    """Return a model with experts in mxfp4, in blocks of 32, and one with the same weights in 32 bits."""
    import torch
    from safetensors.torch import load_file

    plain, stored = load_file(source / "model.safetensors"), {}
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = plain[name].shape
        codes = torch.randint(16, (experts, outputs, inputs // 32, 32))
        exponents = torch.randint(120, 123, codes.shape[:-1])
        values = torch.tensor(FP4_VALUES)[codes] * torch.exp2(exponents - 127.0)[..., None]
        stored[f"{name}_blocks"] = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
        stored[f"{name}_scales"] = exponents.to(torch.uint8)
        plain[name] = values.reshape(experts, outputs, inputs).transpose(1, 2).contiguous()
    kept = {name: weight for name, weight in plain.items() if f"{name}_blocks" not in stored}
    method = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens"]}
    return copy_model(source, folder / "mxfp4", kept | stored, method), copy_model(
        source, folder / "plain", plain, None
    )


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_training_of_stored_bitsandbytes_model_equals_quantizing_it(
    run: RunTraining, tmp_path: Path, method: str
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base, stored = build(tmp_path / "base"), tmp_path / "stored"
    settings = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "int8": {"load_in_8bit": True},
    }[method]
    quantization = BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype="bfloat16")
    AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization).save_pretrained(stored)
    tokenizer().save_pretrained(stored)
    check_model_dir(stored)
    source = {"quantization": method}
    runs = [run(folder, source=source, validate=True, **SETTINGS) for folder in (base, stored)]
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-6)
    assert runs[0].metrics["evalLoss"] == pytest.approx(runs[1].metrics["evalLoss"], abs=1e-6)
    asked = config()
    asked = asked.model_copy(update={"model": asked.model.model_copy(update=source)})
    assert compute_model_shape(asked, stored) == compute_model_shape(asked, base)
    with pytest.raises(TrainerError) as caught:
        load_model(config(), stored, "transformers")
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message == (
        f"model.quantization is none, but the weights of the base model are stored in {method} of bitsandbytes; "
        f"set it to {method}"
    )


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_load_model_plain_weights_with_leftover_quantization_config_is_model_invalid(
    tmp_path: Path, method: str
) -> None:
    model_dir = build(tmp_path)
    bits = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}[method]
    settings = json.loads((model_dir / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", **bits}
    (model_dir / "config.json").write_text(json.dumps(settings))
    asked = config()
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"quantization": method})})
    with pytest.raises(TrainerError, match=r"14 layers such as .* have plain weights; remove quant") as caught:
        load_model(asked, model_dir, "transformers")
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_training_of_dequantized_model_equals_its_values(run: RunTraining, tmp_path: Path, method: str) -> None:
    if method == "fp8":
        stored, plain = store_fp8(build(tmp_path / "base"), tmp_path)
    else:
        stored, plain = store_mxfp4(build_family(tmp_path / "base", "gpt_oss"), tmp_path)
    check_model_dir(stored)
    runs = [run(folder, validate=True, **SETTINGS) for folder in (plain, stored)]
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-5)
    assert runs[0].metrics["evalLoss"] == pytest.approx(runs[1].metrics["evalLoss"], abs=1e-5)
    assert compute_model_shape(config(), stored) == compute_model_shape(config(), plain)
    asked = config()
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"quantization": "nf4"})})
    with pytest.raises(TrainerError, match=f"stored in {method} and converted .*; set it to none") as caught:
        compute_model_shape(asked, stored)
    assert caught.value.reason is Reason.CONFIG_INVALID
    merging = config().model_copy(update={"output": config().output.model_copy(update={"merged": True})})
    with pytest.raises(TrainerError, match=f"output.merged does not support .* stored in {method}"):
        compute_model_shape(merging, stored)
