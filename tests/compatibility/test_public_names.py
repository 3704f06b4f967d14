"""Public names change only together with docs/public-names.yaml and a line in the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.compatibility.names import public_names

ROOT = Path(__file__).parents[2]
LISTED: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "docs" / "public-names.yaml").read_text())
FIRST: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "first-names.yaml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("kind", LISTED | FIRST)
def test_public_names_in_the_code_are_the_listed_ones(kind: str) -> None:
    assert public_names()[kind] == LISTED[kind], "change docs/public-names.yaml too, and say it in CHANGELOG.md"


@pytest.mark.parametrize("kind", LISTED | FIRST)
def test_changed_public_name_is_in_the_changelog(kind: str) -> None:
    changed = LISTED.get(kind, {}).items() ^ FIRST.get(kind, {}).items()
    assert not [name for name, _ in changed if f"`{name}`" not in CHANGELOG]
