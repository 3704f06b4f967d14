"""`finetune init`: write a manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.files import create_file
from finetune_cli.options import ENDPOINT_ENV
from finetune_cli.session import Session

EXAMPLE_MODEL = "hf://Qwen/Qwen3-0.6B"
EXAMPLE_DATA = "s3://my-bucket/train.jsonl"
EXAMPLE_OUTPUT = "s3://my-bucket/adapters/{name}"


class Task(StrEnum):
    """Values of `evaluation.task`, which a test compares with the API."""

    CHAT = "chat"
    CLASSIFICATION = "classification"
    SUMMARIZATION = "summarization"
    TRANSLATION = "translation"
    GENERATION = "generation"


class Method(StrEnum):
    """Values of `training.method`, which a test compares with the API."""

    SFT = "sft"
    DPO = "dpo"
    KTO = "kto"
    GRPO = "grpo"
    RLOO = "rloo"


class Quantization(StrEnum):
    """Values of `model.quantization`, which a test compares with the API."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"


@dataclass(frozen=True)
class InitOptions:
    """What the manifest contains. Options without a value are left to the defaults of the API."""

    name: Annotated[str, typer.Option(help="Name of the run.")] = "my-run"
    model: Annotated[
        str, typer.Option(help="Base model: hf://ORGANIZATION/NAME, s3://bucket/prefix or pvc://claim/path.")
    ] = EXAMPLE_MODEL
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Training data: s3://bucket/key, hf://datasets/OWNER/NAME or pvc://claim/path. Can be repeated."
        ),
    ] = None
    validation: Annotated[
        str | None,
        typer.Option(help="Validation data, or the fraction of the training data to hold out; 0 for none."),
    ] = "0.1"
    task: Annotated[
        Task | None,
        typer.Option(help="What the answers are measured as; chat by default, if there is validation data."),
    ] = None
    method: Annotated[Method, typer.Option(help="Training method.")] = Method.SFT
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 3
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None
    max_length: Annotated[int | None, typer.Option(help="Maximum length of a row, in tokens.")] = None
    quantization: Annotated[
        Quantization | None, typer.Option(help="Precision of the base model in memory; nf4 is QLoRA.")
    ] = None
    output_uri: Annotated[str, typer.Option(help="S3 prefix of the result; {name} and {namespace} are replaced.")] = (
        EXAMPLE_OUTPUT
    )
    region: Annotated[str | None, typer.Option(help="Region of the S3 store.")] = None
    secret: Annotated[str | None, typer.Option(help="Secret with the S3 keys; by default the pod's identity.")] = None
    hub_secret: Annotated[
        str | None, typer.Option(help="Secret with the token of the Hugging Face hub, for gated models.")
    ] = None
    gpus: Annotated[int, typer.Option(help="GPUs of each pod; 0 trains on the CPU.")] = 1
    nodes: Annotated[int, typer.Option(help="Pods that train together.")] = 1
    memory: Annotated[str | None, typer.Option(help="Memory of each pod, such as 32Gi.")] = None
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The file to write, which must not exist; by default stdout.")
    ] = None


def write_manifest(session: Session, options: InitOptions) -> None:
    """Write the manifest of a run, with comments.

    finetune init --model hf://Qwen/Qwen3-0.6B --data s3://data/train.jsonl --output-uri s3://adapters/bot --name bot |
    kubectl apply -f -
    """
    from finetune_cli.manifest_text import build_manifest_text

    # The variable is the address for this machine, which pods may not reach; only the option is meant for the manifest.
    endpoint = session.options.endpoint
    is_from_environment = endpoint == os.environ.get(ENDPOINT_ENV)
    text = build_manifest_text(options, session.options.namespace, None if is_from_environment else endpoint)
    _check(text)
    if session.terminal.prints_data:
        _print_data(session, text)
    elif options.file:
        create_file(options.file, text)
        session.terminal.print_line(f"{options.file} written; next: finetune submit {options.file} --wait")
    else:
        session.terminal.print_text(text)
    if "# <-" in text:
        session.terminal.print_note("Change the lines marked with <-, or set --model, --data and --output-uri.")


def _check(text: str) -> None:
    """Raise `CommandError` if options have led to an invalid manifest."""
    from finetune_cli.manifests import Manifest, find_problems, parse_manifest

    manifest: Manifest = parse_manifest(text, "init")
    problems = find_problems(manifest)
    if problems:
        raise CommandError("; ".join(problem.partition(" (line ")[0] for problem in problems), EXIT_USAGE)


def _print_data(session: Session, text: str) -> None:
    from finetune_cli.manifests import parse_manifest

    session.terminal.print_data(parse_manifest(text, "init").to_body())
