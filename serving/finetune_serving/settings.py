"""Settings of the resolver, from the environment of the inference server."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PREFIX_ENV = "FINETUNE_LORA_PREFIX"
ALLOWED_ENV = "FINETUNE_LORA_ALLOWED"
BASE_MODEL_ENV = "FINETUNE_LORA_BASE_MODEL"
CACHE_DIR_ENV = "FINETUNE_LORA_CACHE_DIR"
ENDPOINT_ENV = "FINETUNE_LORA_ENDPOINT"
MAX_CACHE_BYTES_ENV = "FINETUNE_LORA_MAX_CACHE_BYTES"
MAX_RANK_ENV = "FINETUNE_LORA_MAX_RANK"
PUBLIC_KEY_ENV = "FINETUNE_LORA_PUBLIC_KEY"
NAME_PLACEHOLDER = "{name}"
LOGGER_NAME = "vllm.finetune_serving"
"""Below the logger of vLLM, which shows no lines of other ones."""
_DEFAULT_CACHE_BYTES = 20 * 2**30
_DEFAULT_RANK = 16
_PREFIX = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^{}*?\\\x00-\x20]*\{name\}/?")
_ENDPOINT = re.compile(r"https?://[^/\s]+/?")


class SettingsError(Exception):
    """A setting is missing or invalid. The message names it and what it must be."""


@dataclass(frozen=True)
class ResolverSettings:
    """Where adapters are, and which ones may be loaded."""

    prefix: str
    """S3 prefix of the results of a name, with the placeholder `{name}`."""
    cache_dir: Path
    allowed: frozenset[str] | None = None
    """Names that may be loaded. If unset, every name may."""
    base_model: str | None = None
    """Name of the base model in `adapter_config.json`. If unset, the name that the server gives."""
    endpoint: str | None = None
    """Endpoint of the store, if it is not AWS."""
    public_key: Path | None = None
    """Key (PEM) that aliases and results must be signed with. If unset, signatures are not verified."""
    max_rank: int = _DEFAULT_RANK
    """Largest rank that the server accepts: its `--max-lora-rank`."""
    max_cache_bytes: int = _DEFAULT_CACHE_BYTES
    """Largest size of the cache in bytes. Nothing is downloaded that would exceed it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings. Raises `SettingsError`."""
        names = environment.get(ALLOWED_ENV, "").replace(",", " ").split()
        key = environment.get(PUBLIC_KEY_ENV)
        default_cache = Path(tempfile.gettempdir()) / "finetune-lora"
        return cls(
            prefix=_check(environment, PREFIX_ENV, _PREFIX, "s3://bucket/path/{name}").rstrip("/"),
            cache_dir=Path(environment.get(CACHE_DIR_ENV) or default_cache),
            allowed=frozenset(names) or None,
            base_model=environment.get(BASE_MODEL_ENV) or None,
            endpoint=_check(environment, ENDPOINT_ENV, _ENDPOINT, "https://host")
            if ENDPOINT_ENV in environment
            else None,
            public_key=Path(key) if key else None,
            max_rank=_parse_number(environment, MAX_RANK_ENV, _DEFAULT_RANK),
            max_cache_bytes=_parse_number(environment, MAX_CACHE_BYTES_ENV, _DEFAULT_CACHE_BYTES),
        )


def _check(environment: Mapping[str, str], name: str, pattern: re.Pattern[str], expected: str) -> str:
    value = environment.get(name, "")
    if not pattern.fullmatch(value):
        raise SettingsError(f"{name} is {value!r}; set it to {expected}")
    return value


def _parse_number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise SettingsError(f"{name} is {text!r}; set it to a positive number")
    return int(text)
