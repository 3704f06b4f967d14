"""`finetune-trainer clean`: delete the checkpoints of ended runs below a prefix, by hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from finetune_trainer.contract import CleanReport, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import pluralize
from finetune_trainer.storage import S3, Location
from finetune_trainer.tasks import clean


def clean_prefix(args: argparse.Namespace) -> Iterator[str]:
    """Clean all outputs below the prefix. Yields a line for each output.

    An output that fails does not keep the others from being cleaned; the first failure is raised at the end.
    """
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", args.prefix):
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.prefix}: must be s3://bucket or s3://bucket/prefix")
    s3 = S3(Storage(endpoint=args.endpoint, region=args.region))
    outputs = clean.find_outputs(s3, Location.parse_folder(args.prefix))
    failures: list[TrainerError] = []
    for output in outputs:
        try:
            report = _clean_output(s3, output, args)
        except TrainerError as error:
            if error.reason is Reason.OUTPUT_BUSY:
                yield f"{output}: skipped, a run is active: {error.message}"
                continue
            failures.append(error)
            yield f"{output}: failed: {error.message}"
        else:
            verb = "would delete" if args.dry_run else "deleted"
            yield f"{output}: {verb} {clean.format_report(report)}"
    yield f"{pluralize(len(outputs), 'output')} with checkpoints"
    if failures:
        message = f"{len(failures)} of {pluralize(len(outputs), 'output')} failed; the first: {failures[0].message}"
        raise TrainerError(failures[0].reason, message)


def _clean_output(s3: S3, output: Location, args: argparse.Namespace) -> CleanReport:
    action = clean.find_garbage if args.dry_run else clean.clean_output
    return action(s3, output, args.older_than)
