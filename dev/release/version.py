"""The version of the project, which several files name."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
_DATED_SECTION = r"^## {version} - \d{{4}}-\d\d-\d\d$"


def read_version(root: Path = ROOT) -> str:
    """Return the version of the Python package."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def find_version_problems(tag: str, root: Path = ROOT) -> list[str]:
    """Return what must be corrected before a tag such as `v0.1.0` can be released."""
    version = read_version(root)
    chart = yaml.safe_load((root / "charts" / "finetune-operator" / "Chart.yaml").read_text(encoding="utf-8"))
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    checks = {
        f"the tag is {tag}, but pyproject.toml has the version {version}": tag == f"v{version}",
        f"Chart.yaml has the version {chart['version']}, not {version}": chart["version"] == version,
        f"Chart.yaml has the appVersion {chart['appVersion']}, not {version}": chart["appVersion"] == version,
        f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD'": _has_section(changelog, version),
    }
    return [problem for problem, is_right in checks.items() if not is_right]


def _has_section(changelog: str, version: str) -> bool:
    return re.search(_DATED_SECTION.format(version=re.escape(version)), changelog, re.MULTILINE) is not None


def read_notes(version: str, root: Path = ROOT) -> str:
    """Return the section of a version in the changelog, without its heading. Raises `ValueError` if there is none."""
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    pattern = rf"^## {re.escape(version)}\b[^\n]*\n(?P<notes>.*?)(?=^## |\Z)"
    found = re.search(pattern, changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section '## {version}'")
    return found["notes"].strip() + "\n"
