"""`finetune-trainer clean`: delete the checkpoints of ended runs below a prefix, by hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from finetune_trainer.contract import CleanReport, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3, Location
from finetune_trainer.tasks import clean


def clean_prefix(args: argparse.Namespace) -> Iterator[str]:
    """Clean all outputs below the prefix. Yields a line for each output in which something is deleted or kept."""
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", args.prefix):
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.prefix}: must be s3://bucket or s3://bucket/prefix")
    s3 = S3(Storage(endpoint=args.endpoint, region=args.region))
    outputs = clean.find_outputs(s3, Location.parse_folder(args.prefix))
    for output in outputs:
        try:
            report = _clean_output(s3, output, args)
        except TrainerError as error:
            if error.reason is not Reason.OUTPUT_BUSY:
                raise
            yield f"{output}: skipped, a run is active: {error.message}"
        else:
            verb = "would delete" if args.dry_run else "deleted"
            yield f"{output}: {verb} {clean.format_report(report)}"
    yield f"{len(outputs)} outputs with checkpoints"


def _clean_output(s3: S3, output: Location, args: argparse.Namespace) -> CleanReport:
    action = clean.find_garbage if args.dry_run else clean.clean_output
    return action(s3, output, args.older_than)
