"""`gguf/manifest.json`: the GGUF files of a result, and what they were converted from."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_trainer.contract import GgufType, Model, TrainerConfig
from finetune_trainer.records.manifest import FileRecord

GGUF_PREFIX = "gguf/"
"""Folder of the GGUF files, relative to that of the adapter."""
MODELFILE_NAME = "Modelfile"
"""Name of the file from which Ollama creates a model."""


class GgufManifest(Model):
    """Content of `gguf/manifest.json`, which completes the folder. Paths are relative to the folder."""

    model_config = ConfigDict(extra="ignore")

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["GgufManifest"] = "GgufManifest"
    created_at: str
    adapter_digest: str
    """`sha256:…` of the adapter's `manifest.json`."""
    type: GgufType
    """Number format of the matrices. Those of an adapter whose rank is no multiple of 32 have f16 in place of q8_0."""
    converter: str
    """Package and version of the conversion scripts."""
    files: list[FileRecord]
    missing: dict[str, str] = Field(default={})
    """Files that were requested and cannot be made, with the reason, by their names."""

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON in UTF-8."""
        return (self.model_dump_json(by_alias=True, indent=2) + "\n").encode()


def can_convert_adapter(config: TrainerConfig) -> bool:
    """Return whether llama.cpp can load the adapter, or only a merged model."""
    lora = config.training.lora
    return not (lora.variant == "dora" or lora.target_parameters or lora.trainable_tokens)


def list_gguf_names(config: TrainerConfig) -> set[str]:
    """Return the names of the GGUF files that `output.gguf` requests."""
    gguf_type = config.output.gguf
    adapter_names = {get_adapter_name(gguf_type)} if can_convert_adapter(config) else set()
    return adapter_names | ({get_model_name(gguf_type)} if config.output.merged else set())


def get_adapter_name(gguf_type: str) -> str:
    """Return the name of the file with the adapter."""
    return f"adapter-{gguf_type}.gguf"


def get_model_name(gguf_type: str) -> str:
    """Return the name of the file with the merged model."""
    return f"model-{gguf_type}.gguf"
