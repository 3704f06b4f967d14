"""Watching a FineTuneJob until it ends."""

import json
import sys
import time
from typing import Any

from local_cluster.cluster import Cluster
from local_cluster.console import duration, refresh
from local_cluster.errors import Problem

LIMIT_SECONDS = 1800
INTERVAL_SECONDS = 2


def follow(cluster: Cluster, job: str) -> None:
    """One line that changes on a terminal, one line per change elsewhere."""
    begun = time.monotonic()
    before = ""
    while True:
        status = json.loads(cluster.kubectl("get", "ftj", job, "--output=json")).get("status", {})
        elapsed = time.monotonic() - begun
        text = summary(status)
        if text != before or sys.stdout.isatty():
            refresh(f"        {text}  {duration(elapsed)}", last=is_over(status))
        before = text
        if is_over(status):
            break
        if elapsed > LIMIT_SECONDS:
            raise Problem(f"{job} has not ended after {duration(LIMIT_SECONDS)}: kubectl describe ftj {job}")
        time.sleep(INTERVAL_SECONDS)
    if status["phase"] == "Failed":
        raise Problem(f"{job} failed: {message(status)} (kubectl logs job/{job})")


def is_over(status: dict[str, Any]) -> bool:
    return status.get("phase") in ("Complete", "Failed")


def summary(status: dict[str, Any]) -> str:
    """What `kubectl get ftj` shows, in one line."""
    progress = status.get("progress", {})
    parts = [status.get("phase", "Pending")]
    if "percentage" in progress:
        parts.append(f"{progress['percentage']} %")
    if "stage" in progress:
        parts.append(progress["stage"])
    if progress.get("totalSteps"):
        parts.append(f"step {progress.get('step', 0)}/{progress['totalSteps']}")
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.4g}")
    return "  ".join(parts)


def message(status: dict[str, Any]) -> str:
    """Why it failed, in the operator's words."""
    failed = [each for each in status.get("conditions", []) if each["type"] == "Failed" and each["status"] == "True"]
    return failed[0]["message"] if failed else "no reason is given"
