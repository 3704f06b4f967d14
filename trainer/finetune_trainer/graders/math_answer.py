"""Compares mathematical expressions by their value, in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time

from finetune_trainer.contract import Math
from finetune_trainer.graders.base import AnswerGrader, AnswerProblem, DataProblem, GradedAnswer
from finetune_trainer.graders.math_worker import EQUAL, NO_REFERENCE, READY, TIMEOUT_SECONDS
from finetune_trainer.graders.templates import resolve_text

_START_SECONDS = 120
_MAX_CHARS = 20_000
"""Characters of an answer that are read: from its end, where the result is."""


class MathGrader(AnswerGrader):
    """Scores 1 if the expressions are equal by value."""

    def __init__(self, _: str, settings: Math) -> None:
        self._settings = settings
        self._worker = MathWorker()
        self._references: dict[str, bool] = {}

    def score(self, answer: GradedAnswer) -> float:
        reference = resolve_text(self._settings.reference, answer)
        if not self._is_expression(reference):
            raise DataProblem(f"{self._settings.reference} is not a mathematical expression")
        text = resolve_text(self._settings.input, answer)[-_MAX_CHARS:]
        verdict = self._worker.ask(reference, text)
        if verdict is None:
            raise AnswerProblem("the expression of the answer takes too long or too much memory")
        return float(verdict == EQUAL)

    def _is_expression(self, reference: str) -> bool:
        """Return whether the reference can be read, which is asked once for each."""
        if reference not in self._references:
            verdict = self._worker.ask(reference, None)
            self._references[reference] = verdict is not None and verdict != NO_REFERENCE
        return self._references[reference]

    def close(self) -> None:
        self._worker.stop()


class MathWorker:
    """The process, which is started again after a comparison that took too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def ask(self, reference: str, answer: str | None) -> str | None:
        """Return the verdict, or None if the process took too long or ended. Raises `OSError` if it cannot start."""
        process = self._process or self._start()
        request = json.dumps({"reference": reference, "answer": answer}) + "\n"
        try:
            _send(process, request)
            verdict = self._read_line(process, TIMEOUT_SECONDS)
        except BrokenPipeError:
            verdict = None
        if verdict is None:
            self.stop()
        return verdict

    def stop(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process, self._unread = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process without the variables of this one, which may be credentials."""
        command = [sys.executable, "-I", "-m", "finetune_trainer.graders.math_worker"]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONHASHSEED": "0"}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment)
        if self._read_line(self._process, _START_SECONDS) != READY:
            self.stop()
            raise OSError("the process for graders of kind math does not start; is math-verify installed?")
        return self._process

    def _read_line(self, process: subprocess.Popen[bytes], seconds: float) -> str | None:
        """Return the next line, or None after this time or at the end."""
        deadline = time.monotonic() + seconds
        if process.stdout is None:
            return None
        while b"\n" not in self._unread:
            is_ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            content = os.read(process.stdout.fileno(), 65536) if is_ready else b""
            if not content:
                return None
            self._unread += content
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


def _send(process: subprocess.Popen[bytes], line: str) -> None:
    if process.stdin:
        process.stdin.write(line.encode())
        process.stdin.flush()
