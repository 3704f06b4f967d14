"""The command line's words and what they stand for. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import SCRATCH_ENV, Reason, Storage
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from finetune_trainer.cli.generate import Question


def parser() -> argparse.ArgumentParser:
    """`run`, `plan` and `generate`."""
    top = argparse.ArgumentParser(prog="finetune-trainer", description="Fine-tunes a language model with LoRA.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="train and publish the adapter"))
    _add_plan(commands.add_parser("plan", help="say what a run would do and need, without training"))
    _add_generate(commands.add_parser("generate", help="ask the base model and the adapter the same questions"))
    return top


def scratch(parsed: argparse.Namespace) -> Path:
    """The folder to write to: the option's, the pod's, or the one we are in."""
    folder = Path(parsed.work_dir or os.environ.get(SCRATCH_ENV) or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def question(parsed: argparse.Namespace) -> Question:
    """What `generate` is to ask; a manifest names model, adapter and storage, options win over it."""
    from finetune_trainer.cli.generate import Question
    from finetune_trainer.config import loader

    config = loader.load(parsed.manifest) if parsed.manifest else None
    model = parsed.model or (config and config.model.uri)
    if not model:
        raise TrainerError(Reason.CONFIG_INVALID, "name a manifest, or a model with --model")
    storage = config.storage if config else Storage()
    if parsed.endpoint:
        storage = storage.model_copy(update={"endpoint": parsed.endpoint})
    return Question(
        model=model,
        revision=config.model.revision if config and not parsed.model else None,
        adapter=None if parsed.base_only else parsed.adapter or (config.output.uri if config else None),
        prompts=parsed.prompt,
        max_new_tokens=parsed.max_new_tokens,
        storage=storage,
    )


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "manifest", nargs="?", type=Path, metavar="MANIFEST", help="a FineTuneJob's YAML; absent: $FINETUNE_CONFIG"
    )
    _add_work_dir(command)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("manifest", type=Path, metavar="MANIFEST", help="a FineTuneJob's YAML")
    command.add_argument("--json", action="store_true", help="JSON instead of a table")
    _add_work_dir(command)


def _add_generate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("manifest", nargs="?", type=Path, metavar="MANIFEST", help="takes model, adapter and storage from it")
    add("--model", metavar="URI", help="base model: a folder, s3://, hf:// or pvc://")
    add("--adapter", metavar="URI", help="adapter: a folder or s3://; absent: the base model alone answers")
    add("--base-only", action="store_true", help="leave the manifest's adapter out")
    add("--prompt", metavar="TEXT", action="append", required=True, help="may be given several times")
    add("--max-new-tokens", metavar="N", type=int, default=128, help="longest answer (%(default)s)")
    add("--endpoint", metavar="URL", help="S3 endpoint, where it is not AWS")
    add("--json", action="store_true", help="one JSON object per line instead of text")
    _add_work_dir(command)


def _add_work_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="scratch space; absent: $FINETUNE_SCRATCH or the current folder"
    )
