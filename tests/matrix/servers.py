"""Writes `servers.json`: what inference servers support, and the columns of the support matrix that follow from it.

    python -m tests.matrix.servers VLLM.json LLAMA_CPP_FOLDER

VLLM.json is the output of `tests/serving/list_vllm_architectures.py`. LLAMA_CPP_FOLDER is the unpacked source
distribution of llama-cpp-python.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

from tests.matrix.families import MODEL_TYPES
from tests.matrix.measure import PAGE_PATH
from tests.matrix.page import render_page

from finetune_trainer.modeling.servable import SERVERS_PATH, ServersRecord
from finetune_trainer.modeling.support_matrix import MATRIX_PATH, VARIANT_SEPARATOR

_CONVERSION = Path("vendor/llama.cpp/conversion/__init__.py")


def main() -> None:
    """Write the file and the page of the documentation."""
    vllm, llama_cpp = (Path(argument) for argument in sys.argv[1:])
    record: ServersRecord = {
        "vllm": json.loads(vllm.read_text(encoding="utf-8")),
        "llamaCpp": {
            "version": llama_cpp.name.rpartition("-")[2],
            "architectures": list_converters(llama_cpp / _CONVERSION),
        },
        "families": {family: find_architecture(family) for family in sorted(MODEL_TYPES)},
    }
    SERVERS_PATH.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE_PATH.write_text(render_page(json.loads(MATRIX_PATH.read_bytes())), encoding="utf-8")


def list_converters(source: Path) -> list[str]:
    """Return the architectures of text models that llama.cpp's converters are registered for."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            return sorted(ast.literal_eval(node.value))
    raise ValueError(f"{source} has no TEXT_MODEL_MAP")


def find_architecture(family: str) -> str:
    """Return the class that generates text, as `config.json` of published models of a family names it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    model_type = family.partition(VARIANT_SEPARATOR)[0]
    multimodal = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(model_type)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) or multimodal
    has_parts = isinstance(multimodal, str) and multimodal.endswith("ForConditionalGeneration")
    return str(multimodal if has_parts else name)


if __name__ == "__main__":
    main()
