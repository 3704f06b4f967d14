"""`make samples`: each sample of an application for real, by hand, with the model of the demo; prints a markdown table.

The manifests are run as they are but for the store's address, one after the other, against the tests' own S3 server.
Some of them only: `python -m tests.bench.bench_samples chatbot translation`; on a GPU instead of the CPU: `--gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.trainer import applications
from tests.trainer.s3_server import KEY_ID, SECRET, S3Server, serve

from finetune_trainer.records.evaluation import Estimate, Evaluation, Measure
from finetune_trainer.reporting.verdicts import direction
from local_cluster import smollm2

HEAD = "| Sample | Held-out rows | Metric | Base | Tuned | Change | 95 % interval | Verdict | Minutes |"
LOSSES = ("perplexity", "evalLoss")


def main() -> None:
    """Rows of the table, each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", help=f"some of: {', '.join(applications.NAMES)}")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU; without, on the CPU, as the samples say")
    asked = parser.parse_args()
    if not asked.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with TemporaryDirectory(prefix="samples-") as name, _server(Path(name)) as server:
        _say(HEAD)
        _say("|" + " --- |" * (HEAD.count("|") - 1))
        for sample in asked.samples or applications.NAMES:
            for row in _rows(sample, server, Path(name)):
                _say(row)


@contextmanager
def _server(folder: Path) -> Iterator[S3Server]:
    """With the base model and the data of all samples."""
    for server in serve(folder):
        applications.store(server)
        for file in sorted(smollm2.ensure_model().iterdir()):
            server.put(f"{applications.MODEL}{file.name}", file.read_bytes())
        yield server


def _rows(sample: str, server: S3Server, folder: Path) -> Iterator[str]:
    job, log = folder / f"{sample}.yaml", folder / f"{sample}.log"
    text = (applications.SAMPLES / job.name).read_text()
    job.write_text(text.replace(applications.ENDPOINT, server.endpoint))
    begun = time.monotonic()
    if _run(job, log):
        last = log.read_text().strip().splitlines()[-1:]
        yield f"| {sample} | failed: {' '.join(last)} |"
        return
    minutes = (time.monotonic() - begun) / 60
    found = Evaluation.model_validate(json.loads(server.get(f"s3://adapters/{sample}/evaluation.json")))
    for measure in _told(found.measures):
        yield f"| {sample} | {_cells(measure)} | {minutes:.1f} |"
    _show(found)


def _run(job: Path, log: Path) -> int:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    line: list[str | Path] = [sys.executable, "-m", "finetune_trainer", "run", job, "--work-dir", job.parent]
    with log.open("w") as written:
        return subprocess.run(line, env=environment, stdout=written, stderr=subprocess.STDOUT).returncode


def _told(measures: Sequence[Measure]) -> list[Measure]:
    """What the task measures, and perplexity."""
    return [each for each in measures if each.name not in LOSSES[1:]]


def _cells(measure: Measure) -> str:
    assert measure.base
    assert measure.change
    values = f"{measure.base.value:.3g} | {measure.tuned.value:.3g} | {measure.change.value:+.3g}"
    return f"{measure.tuned.samples} | {measure.name} | {values} | {_interval(measure.change)} | {direction(measure)}"


def _interval(change: Estimate) -> str:
    return "none" if change.low is None or change.high is None else f"{change.low:+.3g} to {change.high:+.3g}"


def _show(found: Evaluation) -> None:
    """The sample prompts' answers and what else is to be seen, beside the table."""
    for each in found.samples[:3]:
        sys.stderr.write(f"\n> {each.prompt}\nbase:  {each.base}\ntuned: {each.tuned}\n")
    sys.stderr.write(f"{found.overfitting.verdict}: {found.overfitting.message}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
