"""A resolver plug-in for vLLM: loads the adapter that a request names as its model from S3.

vLLM finds `register` by the entry point `finetune_lora_resolver` in the group `vllm.general_plugins`. Set
`VLLM_PLUGINS=finetune_lora_resolver` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=true`.
"""

from __future__ import annotations

import asyncio
import logging
import os

from finetune_serving.settings import LOGGER_NAME, PREFIX_ENV, ResolverSettings

log = logging.getLogger(LOGGER_NAME)

RESOLVER_NAME = "finetune-operator"


def register() -> None:
    """Register the resolver with vLLM if `FINETUNE_LORA_PREFIX` is set. Raises `SettingsError` for wrong settings."""
    if PREFIX_ENV not in os.environ:
        log.info("%s is not set: the resolver of finetune-operator is not registered", PREFIX_ENV)
        return
    settings = ResolverSettings.from_environment(os.environ)
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    from finetune_serving.adapter_resolver import AdapterResolver

    class FinetuneResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not installed where types are checked
        """Passes requests to an `AdapterResolver`, without blocking the server."""

        def __init__(self) -> None:
            self._adapters = AdapterResolver(settings)

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            folder = await asyncio.to_thread(self._adapters.resolve, base_model_name, lora_name)
            # The server replaces the ID by one of its own.
            return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder)) if folder else None

    LoRAResolverRegistry.register_resolver(RESOLVER_NAME, FinetuneResolver())
