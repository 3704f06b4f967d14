"""Code blocks of the documentation: every command of a tutorial is run by a test or says why not; the rest is valid."""

from __future__ import annotations

import ast
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.docs.code_blocks import DOCS, ROOT, CodeBlock, read_blocks
from typer.core import TyperGroup
from typer.main import get_command

from finetune_cli.app import build_app
from finetune_trainer.cli.app import build_parser

PAGES = sorted(DOCS.rglob("*.md"))
RUN_PAGES = [*sorted((DOCS / "getting-started").glob("*.md")), *sorted((DOCS / "tutorials").glob("*.md"))]
"""Pages all of whose commands are run by a test, or say why not."""
RUNNERS = ("offline", "cluster")
COMMANDS = [block for page in PAGES for block in read_blocks(page, "sh")]


def get_place(block: CodeBlock) -> str:
    return block.place


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_tutorial_commands_have_runner_or_reason(page: Path) -> None:
    blocks = read_blocks(page, "sh")
    silent = [block.place for block in blocks if not block.reason and not _has_runner(block)]
    assert silent == [], "write a comment before the block, as tests/support/docs/code_blocks.py describes"


def _has_runner(block: CodeBlock) -> bool:
    if block.model_page is None:
        return block.runner in RUNNERS
    return _with_name(block) in [other.code for other in read_blocks(block.model_page, "sh") if other.runner in RUNNERS]


def _with_name(block: CodeBlock) -> str:
    """Return the code of a block with the name of the page that it is compared with."""
    assert block.model_page
    return block.code.replace(block.page.stem, block.model_page.stem)


@pytest.mark.parametrize("block", COMMANDS, ids=get_place)
def test_commands_are_valid_shell(block: CodeBlock) -> None:
    result = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def list_calls(code: str) -> Iterator[list[str]]:
    """Yield the words of each call of a program of this project. Variables and substitutions stay as they are."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|&;<>"):
                words.append(word)
                continue
            start = 1 if words[:2] == ["kubectl", "finetune"] else 0
            if words[start : start + 1] in (["finetune"], ["finetune-trainer"]):
                yield words[start:]
            words = []


@pytest.mark.parametrize(
    "block", [block for block in [*COMMANDS, *read_blocks(ROOT / "README.md", "sh")] if "finetune" in block.code],
    ids=get_place,
)  # fmt: skip
def test_commands_of_this_project_have_valid_arguments(block: CodeBlock) -> None:
    group = get_command(build_app())
    assert isinstance(group, TyperGroup)
    for program, name, *arguments in list_calls(block.code):
        if program == "finetune-trainer":
            build_parser().parse_args([name, *arguments])  # exits for wrong arguments
        elif not name.startswith("--"):
            group.commands[name].make_context(name, arguments)  # raises for wrong arguments


@pytest.mark.parametrize("block", [block for block in COMMANDS if block.runner == "offline"], ids=get_place)
def test_commands_offline_succeed(block: CodeBlock, tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STORE": "https://s3.internal.example",
        "MODEL": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    result = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("block", [block for page in PAGES for block in read_blocks(page, "python")], ids=get_place)
def test_python_blocks_import_existing_names(block: CodeBlock) -> None:
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(block.code, block.place))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("finetune_")
        for alias in node.names
    ]
    assert [each for each in imports if not hasattr(importlib.import_module(each[0]), each[1])] == []


def _find_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the part of a spec that a document without a kind shows. It is None for other YAML, such as values."""
    if set(document) == {"spec"}:
        return dict(document["spec"])
    # Sections of a FineTuneJob that the values of the chart do not have.
    return document if set(document) & {"dataset", "model", "training", "evaluation", "storage", "output"} else None


SPEC_SCHEMAS: dict[str, dict[str, Any]] = {
    crd["spec"]["names"]["kind"]: version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for crd in yaml.safe_load_all((ROOT / "manifests" / "crd.yaml").read_text())
    for version in crd["spec"]["versions"]
}
PARTS = [
    (block, spec)
    for page in PAGES
    for block in read_blocks(page, "yaml")
    for document in yaml.safe_load_all(block.code)
    if isinstance(document, dict) and "kind" not in document and (spec := _find_spec(document))
]


@pytest.mark.parametrize(("block", "spec"), PARTS, ids=[block.place for block, _ in PARTS])
def test_parts_of_manifests_have_known_fields(block: CodeBlock, spec: dict[str, Any]) -> None:
    unknown = [sorted(_find_unknown_fields(spec, schema)) for schema in SPEC_SCHEMAS.values()]
    assert [] in unknown, f"fields that no kind has: {min(unknown, key=len)}"


def _find_unknown_fields(value: object, schema: dict[str, Any], path: str = "spec") -> Iterator[str]:
    """Yield the paths of fields that a schema of the API does not have."""
    if isinstance(value, list):
        for item in value:
            yield from _find_unknown_fields(item, schema.get("items", {}), f"{path}[]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for name, field in value.items():
        if name in schema["properties"]:
            yield from _find_unknown_fields(field, schema["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}"
