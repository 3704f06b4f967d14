"""`make samples`: run the sample applications with the demo's model and print a markdown table of their metrics.

The manifests are run one after the other against the S3 server of the tests, unchanged except for the store's address.
To run some of them: `python -m tests.bench.bench_samples chatbot translation`. To train with several seeds:
`--seeds 1 2 3`. To train on a GPU: `--gpu`. To keep the reports: `--reports FOLDER`.
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
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from tests.support.trainer import sample_manifests
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve

from finetune_trainer.evaluation.decisions import change_direction
from finetune_trainer.records.evaluation import Estimate, EvaluationReport, Measure
from local_cluster import smollm2

TABLE_HEAD = "| Sample | Seed | Validation rows | Metric | Base | Tuned | Change | 95 % interval | Verdict | Minutes |"
LOSSES = ("perplexity", "evalLoss")
DEFAULT_SEED = 42
"""The default of `training.seed`."""


def main() -> None:
    """Print each row of the table as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", help=f"some of: {', '.join(sample_manifests.SAMPLE_NAMES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[DEFAULT_SEED], help="values of training.seed")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU instead of the CPU")
    parser.add_argument(
        "--reports", type=Path, metavar="FOLDER", help="save report.html and evaluation.json of each sample"
    )
    options = parser.parse_args()
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with TemporaryDirectory(prefix="samples-") as name, _serve_samples(Path(name)) as server:
        _print_line(TABLE_HEAD)
        _print_line("|" + " --- |" * (TABLE_HEAD.count("|") - 1))
        for sample, seed in product(options.samples or sample_manifests.SAMPLE_NAMES, options.seeds):
            run = SampleRun(sample, seed)
            for row in _measure_sample(run, server, Path(name)):
                _print_line(row)
            if options.reports:
                _save_report(run, server, options.reports)


@dataclass(frozen=True)
class SampleRun:
    """A sample that is trained with a seed."""

    sample: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, and of its folder in the bucket for results."""
        return f"{self.sample}-seed{self.seed}"

    def build_manifest(self, endpoint: str) -> dict[str, Any]:
        """Return the sample's manifest with this name, seed and address of the store."""
        manifest = sample_manifests.load_manifest(self.sample)
        manifest["metadata"]["name"] = self.name
        manifest["spec"]["training"]["seed"] = self.seed
        manifest["spec"]["storage"]["endpoint"] = endpoint
        return manifest


@contextmanager
def _serve_samples(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server with the base model and the data of all samples."""
    for server in serve(folder):
        sample_manifests.upload_data(server)
        for file in sorted(smollm2.ensure_model().iterdir()):
            server.put(f"{sample_manifests.MODEL_URI}{file.name}", file.read_bytes())
        yield server


def _measure_sample(run: SampleRun, server: S3Server, folder: Path) -> Iterator[str]:
    job, log = folder / f"{run.name}.yaml", folder / f"{run.name}.log"
    job.write_text(yaml.safe_dump(run.build_manifest(server.endpoint)))
    started = time.monotonic()
    if _run_trainer(job, log):
        last = log.read_text().strip().splitlines()[-1:]
        yield f"| {run.sample} | {run.seed} | failed: {' '.join(last)} |"
        return
    minutes = (time.monotonic() - started) / 60
    evaluation = EvaluationReport.model_validate(json.loads(server.get(f"s3://adapters/{run.name}/evaluation.json")))
    for measure in _select_measures(evaluation.measures):
        yield f"| {run.sample} | {run.seed} | {_format_cells(measure)} | {minutes:.1f} |"
    _print_samples(evaluation)


def _save_report(run: SampleRun, server: S3Server, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file_name in ("report.html", "evaluation.json"):
        published = server.get(f"s3://adapters/{run.name}/{file_name}")
        (folder / f"{run.name}-{file_name}").write_bytes(published)


def _run_trainer(job: Path, log: Path) -> int:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    line: list[str | Path] = [sys.executable, "-m", "finetune_trainer", "run", job, "--work-dir", job.parent]
    with log.open("w") as log_file:
        return subprocess.run(line, env=environment, stdout=log_file, stderr=subprocess.STDOUT).returncode


def _select_measures(measures: Sequence[Measure]) -> list[Measure]:
    """Return the metrics of the task and the perplexity, without the validation loss."""
    return [measure for measure in measures if measure.name not in LOSSES[1:]]


def _format_cells(measure: Measure) -> str:
    assert measure.base
    assert measure.change
    values = f"{measure.base.value:.3g} | {measure.tuned.value:.3g} | {measure.change.value:+.3g}"
    return (
        f"{measure.tuned.samples} | {measure.name} | {values} | {_format_interval(measure.change)} | "
        f"{change_direction(measure)}"
    )


def _format_interval(change: Estimate) -> str:
    return "none" if change.low is None or change.high is None else f"{change.low:+.3g} to {change.high:+.3g}"


def _print_samples(evaluation: EvaluationReport) -> None:
    """Print the answers to the sample prompts and the verdict on overfitting to standard error."""
    for sample in evaluation.samples[:3]:
        sys.stderr.write(f"\n> {sample.turns[-1].text}\nbase:  {sample.base.text}\ntuned: {sample.tuned.text}\n")
    sys.stderr.write(f"{evaluation.overfitting.verdict}: {evaluation.overfitting.message}\n")


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
