"""Runs llama.cpp's conversion scripts in a process of their own, with the libraries of the trainer and no network."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from finetune_trainer.contract import LLAMA_CPP_ENV, Reason
from finetune_trainer.errors import TrainerError

log = logging.getLogger(__name__)

CONVERTER = "llama-cpp-python 0.3.36"
"""Package and version whose scripts this trainer is tested with."""
_DEFAULT_FOLDER = Path("/opt/llama.cpp")
_MODEL_SCRIPT, _ADAPTER_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_MIN_TIMEOUT_SECONDS = 900.0
_MIN_BYTES_PER_SECOND = 10e6
"""A slower conversion counts as hung. On one CPU core, 135 million parameters took 6 s as q8_0, 45 MB/s."""
_POLL_SECONDS = 1.0
_PASSED_ENV = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "XDG_CACHE_HOME")
"""Variables that the scripts get. They get no credentials."""
_LAST_LINES = 3


def find_converters() -> Path:
    """Return the folder of the scripts. Raises `CONFIG_INVALID` if it is missing."""
    folder = Path(os.environ.get(LLAMA_CPP_ENV) or _DEFAULT_FOLDER)
    missing = [name for name in (_MODEL_SCRIPT, _ADAPTER_SCRIPT, "gguf-py") if not (folder / name).exists()]
    if missing:
        message = (
            f"{folder} has no {missing[0]}: GGUF needs the conversion scripts of {CONVERTER}, which the trainer image "
            f"has; elsewhere, run dev/local_cluster/llama_cpp.py DIR and set {LLAMA_CPP_ENV} to DIR"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return folder


@dataclass(frozen=True)
class Converter:
    """The conversion scripts in `folder`."""

    folder: Path
    heartbeat: Callable[[], None]
    """Called every second while a script runs."""

    def convert_adapter(self, adapter_dir: Path, base_dir: Path, gguf_type: str, target: Path) -> None:
        """Convert an adapter of PEFT. Of the base model only the settings are needed.

        Raises `MODEL_UNSUPPORTED` with the script's own reason if it fails.
        """
        options = [str(adapter_dir), "--base", str(base_dir)]
        self._run(_ADAPTER_SCRIPT, options, gguf_type, target, _measure(adapter_dir))

    def convert_model(self, model_dir: Path, gguf_type: str, target: Path) -> None:
        """Convert a complete model. Raises `MODEL_UNSUPPORTED` with the script's own reason if it fails."""
        self._run(_MODEL_SCRIPT, [str(model_dir)], gguf_type, target, _measure(model_dir))

    def _run(self, script: str, options: Sequence[str], gguf_type: str, target: Path, size: int) -> None:
        command = [
            sys.executable,
            str(self.folder / script),
            *options,
            "--outtype",
            gguf_type,
            "--outfile",
            str(target),
        ]
        timeout = _MIN_TIMEOUT_SECONDS + size / _MIN_BYTES_PER_SECOND
        with TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self._build_env()
            )
            try:
                self._wait(process, timeout)
            finally:
                process.kill()  # of no effect once it has ended
                process.wait()
            lines = _read_lines(output)
        for line in lines:
            if " --> " not in line:  # one line for each tensor
                log.info("gguf: %s", line)
        if process.returncode or not target.is_file():
            raise TrainerError(*_describe_failure(script, process.returncode, lines))

    def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired as error:
                self.heartbeat()
                if time.monotonic() > deadline:
                    message = f"the conversion to GGUF did not end within {timeout:.0f} s and was stopped"
                    raise TrainerError(Reason.MODEL_UNSUPPORTED, message) from error
            else:
                return

    def _build_env(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED_ENV if name in os.environ}
        return passed | {
            "PYTHONPATH": str(self.folder / "gguf-py"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }


def _measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _read_lines(output: BinaryIO) -> list[str]:
    output.seek(0)
    return [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]


def _describe_failure(script: str, status: int, lines: Sequence[str]) -> tuple[Reason, str]:
    """Return reason and message of a failed conversion."""
    if status == -9:
        message = "the conversion to GGUF was killed, probably for lack of memory; increase compute.resources"
        return Reason.OUT_OF_MEMORY, message
    text = "\n".join(lines)
    unsupported = re.search(r"Model (\w+) is not supported", text)
    if unsupported:
        return Reason.MODEL_UNSUPPORTED, f"{CONVERTER} cannot convert models of the architecture {unsupported[1]}"
    if "pre-tokenizer was not recognized" in text:
        return Reason.MODEL_UNSUPPORTED, f"{CONVERTER} does not know the tokenizer of this model"
    reason = "; ".join(line.strip()[:200] for line in lines[-_LAST_LINES:]) or f"exit status {status}"
    return Reason.MODEL_UNSUPPORTED, f"{script} of {CONVERTER} failed: {reason}"
