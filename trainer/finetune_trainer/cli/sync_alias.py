"""`finetune-trainer sync-alias`: keep a folder up to date with the champion of a FineTuneSchedule."""

from __future__ import annotations

import argparse
import logging
import re
import time

from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_signature import load_public_key
from finetune_trainer.storage import S3, Location
from finetune_trainer.tasks.alias_follower import CURRENT_NAME, AliasFollower

log = logging.getLogger(__name__)


def follow_alias(args: argparse.Namespace) -> str:
    """Update the folder until the process is stopped, or with `--once` a single time. Returns what `current` is.

    With `--once` it raises what is wrong; otherwise this is logged, and the folder stays as it is until the next try.
    """
    follower = _build_follower(args)
    if args.once:
        follower.update()
        return f"{args.directory / CURRENT_NAME} is the adapter that {args.uri} names"
    problem = ""
    while True:
        problem = _try_update(follower, problem)
        time.sleep(args.interval)


def _build_follower(args: argparse.Namespace) -> AliasFollower:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*[^/]", args.uri):
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.uri}: must be the alias of a schedule, s3://bucket/key")
    key = load_public_key(args.key) if args.key else None
    return AliasFollower(S3(Storage(endpoint=args.endpoint)), Location.parse(args.uri), args.directory, key)


def _try_update(follower: AliasFollower, last_problem: str) -> str:
    """Update the folder and log a problem, unless it is the last one again. Returns the problem, or an empty text."""
    try:
        follower.update()
    except TrainerError as error:
        if error.message != last_problem:
            log.warning("alias: not updated, %s: %s", error.reason, error.message)
        return error.message
    return ""
