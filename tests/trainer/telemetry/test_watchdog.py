"""An attempt in which nothing moves ends by itself."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.contract import OUTCOME_PATH_ENV, Outcome, Reason
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.watchdog import stall_watchdog

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

RUN_SCRIPT = """
import pathlib, sys, time
from finetune_trainer.contract import Stage
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.watchdog import stall_watchdog

folder, moves = pathlib.Path(sys.argv[1]), sys.argv[2]
recorder = OutcomeRecorder(ProgressReporter())
recorder.progress.update(stage=Stage.PREPARING)
with stall_watchdog(recorder, folder, 1.0):
    for number in range(15):
        time.sleep(0.1)
        if moves == "reports":
            recorder.progress.update(step=number)
        if moves == "bytes":
            with (folder / "rows").open("ab") as file:
                file.write(b"x")
"""


@pytest.mark.parametrize(
    ("moves", "status"),
    [
        pytest.param("reports", 0, id="steps are reported"),
        pytest.param("bytes", 0, id="bytes arrive on the disk"),
        pytest.param("nothing", 75, id="nothing moves"),
    ],
)
def test_watchdog_stalled_run_is_ended(tmp_path: Path, moves: str, status: int) -> None:
    (tmp_path / "scratch").mkdir()
    environment = os.environ | {OUTCOME_PATH_ENV: str(tmp_path / "outcome")}
    line = [sys.executable, "-c", RUN_SCRIPT, tmp_path / "scratch", moves]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    if status:
        outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
        assert outcome.reason is Reason.TRAINING_STALLED
        assert "no progress for 1 s in stage Preparing" in outcome.message
        assert "Thread 0x" in done.stderr  # the stacks
        assert "time.sleep" in done.stderr or 'File "<string>"' in done.stderr


UPLOAD_SCRIPT = """
import pathlib, sys
from finetune_trainer.contract import Storage
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.watchdog import stall_watchdog
from finetune_trainer.storage import S3, Location, put_file

folder, endpoint = pathlib.Path(sys.argv[1]), sys.argv[2]
s3 = S3(Storage(endpoint=endpoint))
with stall_watchdog(OutcomeRecorder(ProgressReporter()), folder, 12.0, s3):
    put_file(s3, Location.parse(sys.argv[3]), folder / "large")
"""


class SlowProxy(socketserver.ThreadingTCPServer):
    """Passes on so many bytes a second, of all connections together, up to a limit."""

    daemon_threads = True

    def __init__(self, target: int, rate: int, limit: int) -> None:
        super().__init__(("127.0.0.1", 0), _SlowHandler)
        self.target, self.rate, self.bytes_left = target, rate, limit
        self.lock, self.next_send = threading.Lock(), time.monotonic()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: clients that are killed close their connections abruptly."""


class _SlowHandler(socketserver.BaseRequestHandler):
    server: SlowProxy

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as store:
            threading.Thread(target=self._copy_back, args=(store,), daemon=True).start()
            while content := self.request.recv(2**18):
                with self.server.lock:
                    while self.server.bytes_left <= 0:
                        time.sleep(1)
                    self.server.bytes_left -= len(content)
                    self.server.next_send += len(content) / self.server.rate
                    time.sleep(max(self.server.next_send - time.monotonic(), 0))
                store.sendall(content)

    def _copy_back(self, store: socket.socket) -> None:
        with suppress(OSError):  # one of the two has hung up
            while content := store.recv(2**16):
                self.request.sendall(content)


@pytest.mark.parametrize(
    ("limit", "status"),
    [pytest.param(2**40, 0, id="slow"), pytest.param(20 * 2**20, 75, id="stops half way")],
)
@pytest.mark.s3
@pytest.mark.timeout(180)
def test_watchdog_large_upload_counts_as_progress(s3: S3Server, tmp_path: Path, limit: int, status: int) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(160 * 2**20)
    with SlowProxy(int(s3.endpoint.rpartition(":")[2]), 8 * 2**20, limit) as link:
        threading.Thread(target=link.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{link.server_address[1]}"
        environment = os.environ | {OUTCOME_PATH_ENV: str(tmp_path / "outcome")}
        target = f"s3://results/{tmp_path.name}/large"
        line = [sys.executable, "-c", UPLOAD_SCRIPT, tmp_path, endpoint, target]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        link.shutdown()
    assert done.returncode == status, done.stderr
    assert bool(s3.list_keys(target)) is (status == 0)


def test_watchdog_folders_removed_while_they_are_read_are_no_error(tmp_path: Path) -> None:
    folder, recorder = tmp_path / "work", OutcomeRecorder(ProgressReporter())
    with ExitStack() as watchdogs:
        for _ in range(20):  # pytest reports exceptions of their threads
            watchdogs.enter_context(stall_watchdog(recorder, folder, seconds=3))
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            (folder / "part").mkdir(parents=True)
            shutil.rmtree(folder)
