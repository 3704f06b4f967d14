"""The launcher kills ranks that do not respond, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from finetune_trainer.cli.rank_watch import RankWatch


def test_rank_watch_silent_rank_is_killed(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as silent, subprocess.Popen(sleep) as responding:
        for rank, process in enumerate((responding, silent)):
            (tmp_path / f"alive-{rank}").write_text(str(process.pid))
        (tmp_path / "alive-2").write_text(str(os.getppid()))  # a process id that was used again
        watch = RankWatch(tmp_path, stall_seconds=2)
        deadline = time.monotonic() + 30
        while silent.poll() is None:
            assert time.monotonic() < deadline
            os.utime(tmp_path / "alive-0")
            watch.check()
            time.sleep(0.2)
        assert [*watch.unresponsive] == [1]
        assert responding.poll() is None
        responding.kill()
