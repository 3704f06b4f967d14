"""Measures the support matrix: `python -m tests.matrix.measure [--families a,b] [--unsloth | --sharding] [--write]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.matrix.families import MODEL_TYPES
from tests.matrix.page import render_page
from tests.support.trainer.tiny_model import QUIET_ENV

from finetune_trainer.modeling.support_matrix import COLUMNS, MATRIX_PATH, NOT_MEASURED, YES, load_families

ROOT = Path(__file__).resolve().parents[2]
PAGE_PATH = ROOT / "docs" / "reference" / "support-matrix.md"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth")
Cells = dict[str, str]
"""The cells of a family by column."""
_UNSLOTH_COLUMN = "unsloth"
_SHARDING_COLUMN = "shards"
_OTHER_COLUMNS = [column for column in COLUMNS if column not in (_UNSLOTH_COLUMN, _SHARDING_COLUMN)]


def main() -> int:
    """Measure the families and print each. Return 1 if there are defects of the trainer."""
    arguments = _parse_arguments()
    warnings.simplefilter("ignore")
    os.environ.update(QUIET_ENV)
    families = arguments.families.split(",") if arguments.families else list(MODEL_TYPES)
    measured = {family: dict(cells) for family, cells in (load_families() if MATRIX_PATH.is_file() else {}).items()}
    defect_count = 0
    for family, cells in _choose_measurement(arguments)(families):
        print(json.dumps({family: cells}), flush=True)
        defect_count += sum(cell.startswith("error") for cell in cells.values())
        measured[family] = {**measured.get(family, {}), **cells}
        if arguments.write:
            write_matrix(measured)
    print(f"{len(families)} families, {defect_count} defects", file=sys.stderr)
    return 1 if defect_count else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default="", help="comma-separated model types; all by default")
    parser.add_argument("--unsloth", action="store_true", help="measure the column unsloth instead of all others")
    parser.add_argument("--sharding", action="store_true", help="measure the column shards instead of all others")
    parser.add_argument("--write", action="store_true", help="write the matrix and its page")
    return parser.parse_args()


def _choose_measurement(arguments: argparse.Namespace) -> Callable[[Sequence[str]], Iterator[tuple[str, Cells]]]:
    if arguments.sharding:
        return _iterate_sharding_cells
    return _iterate_unsloth_cells if arguments.unsloth else _iterate_cells


def _iterate_cells(families: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield families with all cells except that of Unsloth. Libraries are imported as in a run that quantizes."""
    from finetune_trainer.modeling import backends

    backends.import_backend("transformers", "nf4")
    import torch
    from tests.matrix.measurement import measure_family

    torch.set_num_threads(1)
    for family in families:
        measurement = measure_family(family)
        for column, text in measurement.tracebacks.items():
            print(f"{family}, {column}: {text}", file=sys.stderr, flush=True)
        yield family, dict.fromkeys(_OTHER_COLUMNS, NOT_MEASURED) | measurement.cells


def _iterate_unsloth_cells(families: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the cell of Unsloth for families that train with transformers, whose losses it is compared with."""
    from tests.matrix.unsloth_measurement import measure_unsloth

    stored = load_families()
    for family, cell in measure_unsloth([family for family in families if stored[family]["sft"] == YES]):
        yield family, {_UNSLOTH_COLUMN: cell}


def _iterate_sharding_cells(families: Sequence[str]) -> Iterator[tuple[str, Cells]]:
    """Yield the cell of sharding for families that train."""
    from tests.matrix.sharding_measurement import measure_sharding

    stored = load_families()
    for family, cell in measure_sharding([family for family in families if stored[family]["sft"] == YES]):
        yield family, {_SHARDING_COLUMN: cell}


def build_matrix(measured: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the matrix as it is stored. The cell of a defect is not measured: it must be fixed."""
    return {
        "lockSha256": compute_lock_hash(),
        "versions": {name: version(name) for name in _LIBRARIES},
        "families": {
            family: {column: _clean_cell(measured[family].get(column, NOT_MEASURED)) for column in COLUMNS}
            for family in sorted(MODEL_TYPES)
            if family in measured
        },
    }


def _clean_cell(cell: str) -> str:
    return NOT_MEASURED if cell.startswith("error") else cell


def compute_lock_hash(lock_file: Path = ROOT / "uv.lock") -> str:
    """Return the SHA-256 of the names and versions in `uv.lock` of the libraries and of all that they depend on.

    Other packages do not change what is measured.
    """
    packages = tomllib.loads(lock_file.read_text(encoding="utf-8"))["package"]
    by_name = {package["name"]: package for package in packages}
    pending, needed = list(_LIBRARIES), set[str]()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += [dependency["name"] for dependency in by_name[name].get("dependencies", [])]
    lines = sorted(f"{name}=={by_name[name]['version']}" for name in needed)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_matrix(measured: Mapping[str, Mapping[str, str]]) -> None:
    """Write the JSON file that the trainer reads, and the page of the documentation."""
    matrix = build_matrix(measured)
    MATRIX_PATH.write_text(json.dumps(matrix, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE_PATH.write_text(render_page(matrix), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
