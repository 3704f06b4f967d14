"""Public names change only together with docs/public-names.yaml and a line in the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.support.compatibility.public_names import collect_public_names

ROOT = Path(__file__).parents[2]
LISTED_NAMES: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "docs" / "public-names.yaml").read_text())
FIRST_NAMES: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "first-names.yaml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("kind", LISTED_NAMES | FIRST_NAMES)
def test_public_names_in_code_match_documented_list(kind: str) -> None:
    assert collect_public_names()[kind] == LISTED_NAMES[kind], (
        "change docs/public-names.yaml too, and say it in CHANGELOG.md"
    )


@pytest.mark.parametrize("kind", LISTED_NAMES | FIRST_NAMES)
def test_public_names_change_is_in_changelog(kind: str) -> None:
    changed = LISTED_NAMES.get(kind, {}).items() ^ FIRST_NAMES.get(kind, {}).items()
    assert not [name for name, _ in changed if f"`{name}`" not in CHANGELOG]
