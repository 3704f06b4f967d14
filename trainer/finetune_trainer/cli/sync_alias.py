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
from finetune_trainer.tasks.vllm_server import VllmServer

log = logging.getLogger(__name__)


def follow_alias(args: argparse.Namespace) -> str:
    """Update the folder until the process is stopped, or with `--once` a single time. Returns what `current` is.

    With `--once` it raises what is wrong; otherwise this is logged, and the folder stays as it is until the next try.
    """
    follower = _build_follower(args)
    server = VllmServer(args.vllm_url, args.lora_name) if args.vllm_url else None
    if args.once:
        _update(follower, server)
        return f"{args.directory / CURRENT_NAME} is the adapter that {args.uri} names"
    problem = ""
    while True:
        problem = _try_update(follower, server, problem)
        time.sleep(args.interval)


def _build_follower(args: argparse.Namespace) -> AliasFollower:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+", args.uri):
        message = "must be the alias of a schedule, s3://bucket/key, or a result, s3://bucket/prefix/"
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.uri}: {message}")
    if args.uri.endswith("/") and args.key:
        message = "--key verifies aliases only; verify a result with model_signing"
        raise TrainerError(Reason.CONFIG_INVALID, f"{args.uri}: {message}")
    if bool(args.vllm_url) != bool(args.lora_name):
        raise TrainerError(Reason.CONFIG_INVALID, "--vllm-url and --lora-name need each other: give both or none")
    key = load_public_key(args.key) if args.key else None
    return AliasFollower(S3(Storage(endpoint=args.endpoint)), Location.parse(args.uri), args.directory, key)


def _update(follower: AliasFollower, server: VllmServer | None) -> None:
    follower.update()
    current = follower.find_current()
    if server and current:
        server.load(current)


def _try_update(follower: AliasFollower, server: VllmServer | None, last_problem: str) -> str:
    """Update the folder and log a problem, unless it is the last one again. Returns the problem, or an empty text."""
    try:
        _update(follower, server)
    except TrainerError as error:
        if error.message != last_problem:
            log.warning("alias: not updated, %s: %s", error.reason, error.message)
        return error.message
    return ""
