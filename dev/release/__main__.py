"""`python -m release`: the steps of a release that are more than one command. The workflow of releases calls them."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_operator.codegen.__main__ import CHART, render_install_manifest
from release.chart import ReleasedImage, write_release_chart
from release.version import find_version_problems, read_notes


def main(arguments: Sequence[str]) -> int:
    """Run a command. Returns the exit status; a mistake is one line on stderr."""
    options = _build_parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check that a tag and all files name the same version")
    check.add_argument("tag", help="such as v0.1.0")
    check.set_defaults(run=_check)
    notes = commands.add_parser("notes", help="print the section of a version in the changelog")
    notes.add_argument("version")
    notes.set_defaults(run=lambda options: sys.stdout.write(read_notes(options.version)))
    chart = commands.add_parser("chart", help="write the chart with released images, and install.yaml beside it")
    chart.add_argument("target", type=Path, help="folder, which is created")
    chart.add_argument("--image", action="append", required=True, help="REGISTRY/NAME@sha256:…, once for each image")
    chart.add_argument("--repository", required=True, help="address of the source code")
    chart.set_defaults(run=_write_chart)
    return parser


def _check(options: argparse.Namespace) -> None:
    problems = find_version_problems(options.tag)
    if problems:
        raise ValueError("; ".join(problems))


def _write_chart(options: argparse.Namespace) -> None:
    helm = os.environ.get("HELM") or shutil.which("helm")
    if helm is None:
        raise ValueError("helm was found neither in HELM nor on PATH")
    images = {image.name: image for image in map(ReleasedImage.parse, options.image)}
    chart = options.target / CHART.name
    write_release_chart(CHART, chart, images, options.repository)
    (options.target / "install.yaml").write_text(render_install_manifest(helm, chart), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
