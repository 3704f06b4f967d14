"""Converts a result to GGUF files in a folder, compares them with it, and writes the Modelfile."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import GgufType, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, is_weights_file
from finetune_trainer.publishing.gguf_converter import Converter
from finetune_trainer.records.gguf import MODELFILE_NAME, get_adapter_name, get_model_name
from finetune_trainer.storage import check_disk_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LASTING_REASONS = (Reason.MODEL_UNSUPPORTED, Reason.INTERNAL_ERROR)
"""Reasons that another attempt would not change."""
_INDEX_SUFFIX = ".index.json"
_BYTES_BY_TYPE = {"f16": 1.0, "bf16": 1.0, "q8_0": 17 / 32}
"""Size of a file as a share of weights in 16 bits, which is the most that published models and adapters have."""


@dataclass(frozen=True)
class GgufSources:
    """Folders of what is converted."""

    adapter_dir: Path | None
    """Published adapter with its tokenizer, or None to convert only the merged model."""
    base_dir: Path
    """Base model, of which the settings are used."""
    merged_dir: Path | None = None
    """Merged model with its tokenizer, if the result has one."""

    @property
    def tokenizer_dir(self) -> Path:
        """Folder with the published tokenizer."""
        return self.merged_dir or self.adapter_dir or self.base_dir


def create_gguf_files(sources: GgufSources, gguf_type: GgufType, converter: Converter, target: Path) -> dict[str, str]:
    """Write the GGUF files and the Modelfile to the folder `target`, the same bytes for the same sources.

    Returns why files are missing, by their names: a merged model that cannot be converted does not stop the adapter.
    Raises `MODEL_UNSUPPORTED` if llama.cpp supports nothing of the result, and `INTERNAL_ERROR` if a file differs from
    its source.
    """
    from finetune_trainer.publishing import gguf_check, gguf_modelfile

    tokenizer = _load_tokenizer(sources.tokenizer_dir)
    folders = [folder for folder in (sources.adapter_dir, sources.merged_dir) if folder]
    check_disk_space(target.parent, {"GGUF files": estimate_gguf_bytes(map(_measure_weights, folders), gguf_type)})
    target.mkdir(parents=True, exist_ok=True)
    adapter_name = model_name = None
    missing: dict[str, str] = {}
    if sources.adapter_dir:
        adapter_name = get_adapter_name(gguf_type)
        alpha = _convert_adapter(sources.adapter_dir, sources.base_dir, gguf_type, converter, target / adapter_name)
        gguf_check.check_adapter(target / adapter_name, sources.adapter_dir, alpha)
    if sources.merged_dir:
        model_name = get_model_name(gguf_type)
        try:
            converter.convert_model(sources.merged_dir, gguf_type, target / model_name)
            gguf_check.check_model(target / model_name, sources.merged_dir, tokenizer)
        except TrainerError as error:
            if adapter_name is None or error.reason not in _LASTING_REASONS:
                raise
            (target / model_name).unlink(missing_ok=True)
            missing, model_name = {model_name: error.message}, None
    modelfile = gguf_modelfile.build_modelfile(adapter_name, model_name, tokenizer)
    (target / MODELFILE_NAME).write_text(modelfile, encoding="utf-8")
    return missing


def estimate_gguf_bytes(weight_bytes: Iterable[int], gguf_type: GgufType) -> int:
    """Estimate the size of the files of weights that have so many bytes in 16 bits."""
    return round(sum(weight_bytes) * _BYTES_BY_TYPE[gguf_type])


def find_adapter_problem(adapter_dir: Path) -> str | None:
    """Return why llama.cpp cannot load an adapter of PEFT, or None if it can."""
    settings = _read_settings(adapter_dir)
    fields = {
        "use_dora": "DoRA",
        "modules_to_save": "complete modules that were trained",
        "trainable_token_indices": "trained embeddings of tokens",
        "target_parameters": "adapters of fused experts",
    }
    found = next((text for field, text in fields.items() if settings.get(field)), None)
    return found and f"llama.cpp loads no adapters with {found}; convert the merged model only"


def _convert_adapter(
    adapter_dir: Path, base_dir: Path, gguf_type: GgufType, converter: Converter, target: Path
) -> float:
    """Write the GGUF file of an adapter. Returns its alpha."""
    problem = find_adapter_problem(adapter_dir)
    if problem:
        raise TrainerError(Reason.MODEL_UNSUPPORTED, problem)
    settings = _read_settings(adapter_dir)
    if settings.get("use_rslora"):  # llama.cpp multiplies by alpha / rank
        settings["lora_alpha"] *= math.sqrt(settings["r"])
    with TemporaryDirectory(prefix="gguf-", dir=target.parent.parent) as name:
        staged = Path(name) / "adapter"
        staged.mkdir()
        (staged / ADAPTER_CONFIG_NAME).write_text(json.dumps(settings), encoding="utf-8")
        _link_or_copy(adapter_dir / ADAPTER_WEIGHTS_NAME, staged / ADAPTER_WEIGHTS_NAME)
        base = Path(name) / "base"
        copy_model_settings(base_dir, base)
        converter.convert_adapter(staged, base, gguf_type, target)
    return float(settings["lora_alpha"])


def copy_model_settings(source: Path, target: Path) -> None:
    """Copy the files of a model that contain no weights."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and not is_weights_file(path.name) and not path.name.endswith(_INDEX_SUFFIX):
            shutil.copyfile(path, target / path.name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # on another file system
        shutil.copyfile(source, target)


def _measure_weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if is_weights_file(path.name))


def _read_settings(adapter_dir: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((adapter_dir / ADAPTER_CONFIG_NAME).read_bytes())
    return settings


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return tokenizer
