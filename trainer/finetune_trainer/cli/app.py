"""Arguments of the command line. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from finetune_trainer.config.manifest_text import ENVIRONMENT_MANIFEST, find_environment_manifest
from finetune_trainer.config.suspend_step import STEP_PATTERN
from finetune_trainer.contract import SCRATCH_ENV, GgufType, Reason, Storage
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from finetune_trainer.cli.export import ExportRequest
    from finetune_trainer.cli.generate import GenerateRequest

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
CHAT_PORT = 8000
"""Default port of `chat-server`."""
MAX_SHOWN_ROWS = 1000
"""Maximum of `plan --show-rows`: the data preparation keeps the locations of as many rows."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog="finetune-trainer", description="Fine-tunes a language model with LoRA.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, add_arguments in _COMMANDS:
        add_arguments(subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))
    return parser


def resolve_scratch(args: argparse.Namespace) -> Path:
    """Return the scratch folder: `--work-dir`, that of the pod, or the current folder. Creates it if it is missing."""
    folder = Path(args.work_dir or os.environ.get(SCRATCH_ENV) or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def build_generate_request(args: argparse.Namespace) -> GenerateRequest:
    """Build the request of `generate`. Options take precedence over model, adapter and storage of the manifest."""
    from finetune_trainer.cli.generate import GenerateRequest
    from finetune_trainer.config import loader

    config = loader.load_manifest(args.manifest) if args.manifest else None
    model = args.model or (config and config.model.uri)
    if not model:
        raise TrainerError(Reason.CONFIG_INVALID, "name a manifest, or a model with --model")
    storage = config.storage if config else Storage()
    if args.endpoint:
        storage = storage.model_copy(update={"endpoint": args.endpoint})
    return GenerateRequest(
        model=model,
        revision=config.model.revision if config and not args.model else None,
        adapter=None if args.base_only else args.adapter or (config.output.uri if config else None),
        prompts=args.prompt,
        max_new_tokens=args.max_new_tokens,
        storage=storage,
    )


def build_export_request(args: argparse.Namespace) -> ExportRequest:
    """Build the request of `export`."""
    from finetune_trainer.cli.export import ExportRequest

    return ExportRequest(
        result=args.result,
        gguf_type=args.gguf,
        parts="adapter" if args.adapter_only else "merged" if args.merged else "all",
        target=args.to,
        model=args.model,
        storage=Storage(endpoint=args.endpoint, region=args.region),
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifest", nargs="?", type=Path, metavar="MANIFEST", help="a FineTuneJob's YAML; absent: $FINETUNE_CONFIG"
    )
    parser.add_argument(
        "--suspend-at-step",
        type=_parse_step,
        metavar="N",
        help="evaluate, save a checkpoint and stop after N optimizer steps; a run without it continues from there",
    )
    _add_work_dir_argument(parser)


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    manifest_help = "YAML of a FineTuneJob, a FineTuneSchedule or a FineTuneSweep; absent: $FINETUNE_MANIFEST"
    parser.add_argument(
        "manifest", nargs="?", type=Path, default=ENVIRONMENT_MANIFEST, metavar="MANIFEST", help=manifest_help
    )
    parser.add_argument(
        "--gpu-hour-price", type=float, metavar="PRICE", help="price of one GPU for an hour; adds the cost of a series"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument(
        "--check", action="store_true", help="load the base model and run the checks before the first step"
    )
    parser.add_argument(
        "--show-rows",
        type=_parse_row_count,
        default=0,
        metavar="N",
        help="also print the first N rows as rendered, with the supervised tokens marked",
    )
    _add_work_dir_argument(parser)


def _parse_step(text: str) -> str:
    if not re.fullmatch(STEP_PATTERN, text):
        raise argparse.ArgumentTypeError(f"must be an optimizer step, an integer from 1 on, not {text!r}")
    return text


def _parse_row_count(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SHOWN_ROWS:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_SHOWN_ROWS}, not {text!r}")
    return int(text)


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--prompt", metavar="TEXT", action="append", required=True, help="may be given several times")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=128, help="maximum length of a completion (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of text")


def _add_chat_server_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(parser)
    parser.add_argument("--port", metavar="PORT", type=int, default=CHAT_PORT, help="port on 127.0.0.1 (%(default)s)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=1024, help="maximum length of an answer (%(default)s)"
    )
    parser.set_defaults(prompt=())


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a base model and an adapter."""
    add_argument = parser.add_argument
    manifest_help = "use model, adapter and storage of this FineTuneJob; absent: $FINETUNE_MANIFEST, if it is set"
    add_argument(
        "manifest", nargs="?", type=Path, default=find_environment_manifest(), metavar="MANIFEST", help=manifest_help
    )
    add_argument("--model", metavar="URI", help="base model: a folder, s3://, hf:// or pvc://")
    add_argument("--adapter", metavar="URI", help="adapter: a folder or s3://; absent: base model only")
    add_argument("--base-only", action="store_true", help="ignore the adapter of the manifest")
    add_argument("--endpoint", type=_parse_endpoint, metavar="URL", help="S3 endpoint, if it is not AWS")
    _add_work_dir_argument(parser)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "result", metavar="RESULT", help="s3:// prefix of a published result, or a folder with its files"
    )
    parser.add_argument("--gguf", required=True, choices=get_args(GgufType), help="number format of the files")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--adapter-only", action="store_true", help="convert the adapter alone")
    parts.add_argument("--merged", action="store_true", help="convert the merged model alone")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--to", type=Path, metavar="DIR", help="write the files to this folder, which is new or empty")
    target.add_argument("--publish", action="store_true", help="publish the files in gguf/ below the result")
    parser.add_argument("--model", metavar="URI", help="base model: a folder, s3:// or hf://; absent: as in the result")
    parser.add_argument("--endpoint", type=_parse_endpoint, metavar="URL", help="S3 endpoint, if it is not AWS")
    parser.add_argument("--region", type=_parse_region, metavar="REGION", help="region of the store")
    _add_work_dir_argument(parser)


def _add_grade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="a FineTuneJob's YAML with evaluation.graders")
    form = '{"answer": "text", "item": {...}, "reference": "text"}'
    parser.add_argument("file", type=Path, metavar="FILE", help=f"answers in JSON lines: {form}")
    parser.add_argument("--json", action="store_true", help="the scores of each answer instead of their means")


def _add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    fill_help = "fill $FINETUNE_MODEL_CACHE_DIR with the base model of $FINETUNE_CONFIG"
    fill_note = " If that fails, the exit code is 0 all the same: the trainer then downloads the model."
    actions.add_parser("fill", help=fill_help, description=f"F{fill_help[1:]}.{fill_note}")
    list_help = "list models, sizes and times of the last use"
    list_parser = actions.add_parser("list", help=list_help, description=f"L{list_help[1:]}.")
    list_parser.add_argument("directory", type=Path, metavar="DIR", help="root of the cache")


def _add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="URI", help="s3://bucket/prefix; all outputs below it are cleaned")
    parser.add_argument(
        "--older-than",
        type=_parse_age,
        required=True,
        metavar="AGE",
        help="minimum age of the newest object of a configuration's checkpoints, such as 7d; runs that are suspended "
        "for longer lose their checkpoints",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    parser.add_argument("--endpoint", type=_parse_endpoint, metavar="URL", help="S3 endpoint, if it is not AWS")
    parser.add_argument("--region", type=_parse_region, metavar="REGION", help="region of the store")


def _add_sync_alias_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", metavar="URI", help="alias.uri of a FineTuneSchedule: s3://bucket/key; or a result: s3://bucket/prefix/"
    )
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="folder to write to; DIR/current is a link to the champion's adapter",
    )
    frequency = parser.add_mutually_exclusive_group()
    frequency.add_argument(
        "--interval", type=_parse_interval, default=60, metavar="SECONDS", help="time between two reads (%(default)s)"
    )
    frequency.add_argument("--once", action="store_true", help="update the folder once and exit")
    parser.add_argument("--key", type=Path, metavar="FILE", help="public key (PEM) that the alias must be signed with")
    parser.add_argument(
        "--vllm-url",
        type=_parse_endpoint,
        metavar="URL",
        help="vLLM server that loads each new adapter without a restart",
    )
    parser.add_argument("--lora-name", metavar="NAME", help="name of the adapter at this server")
    parser.add_argument("--endpoint", type=_parse_endpoint, metavar="URL", help="S3 endpoint, if it is not AWS")


def _parse_interval(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 1 to 999999, not {text!r}")
    return int(text)


def _parse_endpoint(text: str) -> str:
    return _check_storage_option("endpoint", text, "a URL without a path, such as https://s3.example.com")


def _parse_region(text: str) -> str:
    return _check_storage_option("region", text, "a region, such as eu-west-1")


def _check_storage_option(field: str, text: str, expected: str) -> str:
    """Return the value of a field of `Storage`. Raises `ArgumentTypeError` if it is not valid."""
    try:
        Storage.model_validate({field: text})
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}") from error
    return text


def _parse_age(text: str) -> int:
    """Return the seconds of an age such as `7d`, `12h`, `30m` or `90s`."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number with the unit s, m, h or d, such as 7d, not {text!r}")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def _add_work_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="scratch space; absent: $FINETUNE_SCRATCH or the current folder"
    )


def _add_no_arguments(_: argparse.ArgumentParser) -> None:
    """The command reads its environment."""


_COMMANDS = (
    ("run", "train and publish the adapter", _add_run_arguments),
    ("plan", "show what a run would do and need, without training", _add_plan_arguments),
    ("generate", "generate completions with the base model and with the adapter", _add_generate_arguments),
    (
        "chat-server",
        "serve the base model and the adapter on 127.0.0.1 with OpenAI's chat protocol",
        _add_chat_server_arguments,
    ),
    ("grade", "score answers in a file by the graders of a manifest", _add_grade_arguments),
    ("export", "convert a published result to GGUF files for llama.cpp and Ollama", _add_export_arguments),
    ("cache", "fill or list a cache of base models", _add_cache_arguments),
    ("clean", "delete old checkpoints of ended runs below a prefix", _add_clean_arguments),
    ("sync-alias", "keep a folder up to date with the champion of a schedule", _add_sync_alias_arguments),
    ("task", "run the task of a task pod, which the operator describes in $FINETUNE_TASK", _add_no_arguments),
)
