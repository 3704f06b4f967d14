"""Makes a running vLLM server load another adapter under the same name.

The server needs `VLLM_ALLOW_RUNTIME_LORA_UPDATING=true`:
https://docs.vllm.ai/en/latest/features/lora.html#dynamically-serving-lora-adapters
"""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.text import shorten

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 120
"""vLLM answers when the adapter is loaded."""
_MAX_ANSWER_BYTES = 2000


@dataclass
class VllmServer:
    """A vLLM server that reads the folder of an `AliasFollower` at the same path."""

    url: str
    lora_name: str
    loaded: Path | None = field(default=None, init=False)
    """The folder that the server has loaded last."""

    def load(self, folder: Path) -> None:
        """Make the server load an adapter, unless it was the last one. Raises `STORAGE_UNREACHABLE` if it does not.

        Each adapter has a folder of its own. vLLM would answer from prefixes that the previous weights have computed
        if the path were the same.
        """
        if folder == self.loaded:
            return
        body = {"lora_name": self.lora_name, "lora_path": str(folder.absolute()), "load_inplace": True}
        request = urllib.request.Request(  # noqa: S310 - the command line accepts http and https alone
            f"{self.url.rstrip('/')}/v1/load_lora_adapter",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
                self.loaded = folder
        except urllib.error.HTTPError as error:
            raise self._refused_error(error) from error
        except OSError as error:
            message = f"vLLM at {self.url} does not respond ({error}); it is asked again at the next interval"
            raise TrainerError(Reason.STORAGE_UNREACHABLE, message) from error
        log.info("alias: vLLM at %s serves %s as %s", self.url, folder.name, self.lora_name)

    def _refused_error(self, error: urllib.error.HTTPError) -> TrainerError:
        answer = shorten(error.read(_MAX_ANSWER_BYTES).decode(errors="replace"))
        hint = "; set VLLM_ALLOW_RUNTIME_LORA_UPDATING=true" if error.code == HTTPStatus.NOT_FOUND else ""
        return TrainerError(
            Reason.CONFIG_INVALID, f"vLLM at {self.url} does not load {self.lora_name}: {error.code} {answer}{hint}"
        )
