"""Tests of `python -m release`, which the workflow of releases calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from release.__main__ import main
from release.chart import IMAGE_NAMES
from release.version import ROOT, find_version_problems, read_notes, read_version

DIGESTS = {name: "sha256:" + str(number) * 64 for number, name in enumerate(IMAGE_NAMES, start=1)}
REGISTRY = "registry.example:5000/team"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the files that name the version, of a version that can be released."""
    version = read_version()
    (tmp_path / "charts" / "finetune-operator").mkdir(parents=True)
    for name in ("pyproject.toml", "charts/finetune-operator/Chart.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    changelog = f"# Changelog\n\n## {version} - 2026-12-01\n\n### Added\n\n- All.\n\n## 0.0.1 - 2026-01-01\n\n- Old.\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    return tmp_path


def test_check_equal_versions_have_no_problem(checkout: Path) -> None:
    assert find_version_problems(f"v{read_version()}", checkout) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("charts/finetune-operator/Chart.yaml", "\nversion: ", "\nversion: 9.", "Chart.yaml has the version 9."),
        ("charts/finetune-operator/Chart.yaml", "appVersion: ", "appVersion: 9.", "Chart.yaml has the appVersion 9."),
        ("CHANGELOG.md", " - 2026-12-01", " (unreleased)", "CHANGELOG.md has no section"),
    ],
)
def test_check_file_with_other_version_is_named(checkout: Path, name: str, old: str, new: str, message: str) -> None:
    path = checkout / name
    path.write_text(path.read_text().replace(old, new, 1))
    (problem,) = find_version_problems(f"v{read_version()}", checkout)
    assert problem.startswith(message)


def test_check_other_tag_is_an_error_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "v99.0.0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the tag is v99.0.0, but pyproject.toml has the version ")
    assert error.count("\n") == 1


def test_notes_are_those_of_the_version_alone(checkout: Path) -> None:
    assert read_notes(read_version(), checkout) == "### Added\n\n- All.\n"
    assert read_notes("0.0.1", checkout) == "- Old.\n"
    with pytest.raises(ValueError, match=r"has no section '## 7\.0\.0'"):
        read_notes("7.0.0", checkout)


@pytest.fixture
def images() -> list[str]:
    return [word for name, digest in DIGESTS.items() for word in ("--image", f"{REGISTRY}/{name}@{digest}")]


def test_chart_image_without_digest_is_an_error(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HELM", "helm")
    images[1] = f"{REGISTRY}/finetune-operator:0.1.0"
    assert main(["chart", str(tmp_path / "x"), *images, "--repository", "https://code.example"]) == 1
    assert "is not REGISTRY/NAME@sha256:" in capsys.readouterr().err
