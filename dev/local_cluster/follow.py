"""Following a FineTuneJob on the console until it ends."""

import json
import sys
import time
from typing import Any

from local_cluster.cluster import Cluster
from local_cluster.console import format_duration, refresh_line
from local_cluster.errors import UserError

TIMEOUT_SECONDS = 1800
POLL_INTERVAL_SECONDS = 2


def follow_job(cluster: Cluster, job: str) -> None:
    """Print the status of a FineTuneJob until it is complete: one line that is refreshed, or one line per change.

    Raises UserError if the FineTuneJob fails or does not end within 30 minutes.
    """
    started = time.monotonic()
    previous_text = ""
    while True:
        status = json.loads(cluster.kubectl("get", "ftj", job, "--output=json")).get("status", {})
        elapsed = time.monotonic() - started
        text = summarize_status(status)
        if text != previous_text or sys.stdout.isatty():
            refresh_line(f"        {text}  {format_duration(elapsed)}", last=is_finished(status))
        previous_text = text
        if is_finished(status):
            break
        if elapsed > TIMEOUT_SECONDS:
            raise UserError(
                f"FineTuneJob {job} did not end within {format_duration(TIMEOUT_SECONDS)}: "
                f"export KUBECONFIG={cluster.kubeconfig}; kubectl describe ftj {job}"
            )
        time.sleep(POLL_INTERVAL_SECONDS)
    if status["phase"] == "Cancelled":
        raise UserError(f"FineTuneJob {job} was cancelled by spec.cancel.")
    if status["phase"] == "Failed":
        raise UserError(
            f"FineTuneJob {job} failed: {get_failure_message(status)} "
            f"(for its log: export KUBECONFIG={cluster.kubeconfig}; kubectl logs job/{job})"
        )


def is_finished(status: dict[str, Any]) -> bool:
    return status.get("phase") in ("Complete", "Failed", "Cancelled")


def summarize_status(status: dict[str, Any]) -> str:
    """Return phase, progress, stage, step and loss in one line, as far as the status contains them."""
    progress = status.get("progress", {})
    fields = [status.get("phase", "Pending")]
    if "percentage" in progress:
        fields.append(f"{progress['percentage']} %")
    if "stage" in progress:
        fields.append(progress["stage"])
    if progress.get("totalSteps"):
        fields.append(f"step {progress.get('step', 0)}/{progress['totalSteps']}")
    if "loss" in progress:
        fields.append(f"loss {progress['loss']:.4g}")
    return "  ".join(fields)


def get_failure_message(status: dict[str, Any]) -> str:
    """Return the message of the condition Failed."""
    failed_conditions = [
        condition
        for condition in status.get("conditions", [])
        if condition["type"] == "Failed" and condition["status"] == "True"
    ]
    return failed_conditions[0]["message"] if failed_conditions else "its status has no condition Failed"
