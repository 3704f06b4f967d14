"""Guides say what the code does: every reason, real links, manifests that are valid."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.environment import environment

from finetune_operator.api import KIND, FineTuneJob, FineTuneJobSpec, OperatorReason
from finetune_operator.policy.limits import Bounds
from finetune_operator.policy.validation import refusals
from finetune_operator.settings import Settings
from finetune_trainer.contract import ExitCode, Reason

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [each for each in sorted((ROOT / "docs").rglob("*.md")) if each.name != "api.md"]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *WRITTEN]
TENANCY = ROOT / "docs" / "operations" / "multi-tenancy.md"
TROUBLESHOOTING = ROOT / "docs" / "operations" / "troubleshooting.md"
OWN_TRACKER = {"tool": "mlflow", "credentialsSecretRef": {"name": "finetune-mlflow"}}
AGAIN = {
    ExitCode.OK: "no",
    ExitCode.PERMANENT: "no",
    ExitCode.TRANSIENT: "counted",
    ExitCode.INTERNAL: "counted",
    ExitCode.PREEMPTED: "free",
    ExitCode.PEER_LOST: "free",
}


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The table below a heading: first column, without its backticks → the others."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_reason_of_the_trainer_is_explained() -> None:
    found = rows(TROUBLESHOOTING.read_text(), "Reasons reported by the trainer")
    assert list(found) == [str(reason) for reason in Reason]
    assert {name: cells[-1] for name, cells in found.items()} == {
        str(reason): AGAIN[reason.exit_code] for reason in Reason
    }


def test_every_reason_of_the_operator_is_explained() -> None:
    found = rows(TROUBLESHOOTING.read_text(), "Reasons reported by the operator")
    assert list(found) == [str(reason) for reason in OperatorReason]
    assert all(all(cells) for cells in found.values())


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(guide: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", guide.read_text())
    missing = [each for each in targets if "://" not in each and not (guide.parent / each).exists()]
    assert not missing


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_manifests_in_guides_are_valid(guide: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", guide.read_text(), re.DOTALL)
    for document in (each for block in blocks for each in yaml.safe_load_all(block)):
        if document.get("kind") == KIND:
            FineTuneJobSpec.model_validate(document["spec"])


# what is added to the quickstart, and the field that is refused
STRICT: dict[str, tuple[dict[str, Any], str | None]] = {
    "the quickstart": ({}, None),
    "a Secret for the company's tracker": (
        {"tracking": {"uri": "https://mlflow.internal.example"}}, None,
    ),
    "a Secret for a collector": ({"tracking": {"uri": "https://evil.example"}}, "spec.tracking.uri"),
    "W&B": ({"tracking": {"tool": "wandb"}}, "spec.tracking.uri"),
    "a device of the host": (
        {"compute": {"resources": {"limits": {"smarter-devices/fuse": "1"}}}}, "spec.compute.resources",
    ),
    "an adapter of somebody else": ({"model": {"adapterURI": "s3://evil/x"}}, "spec.model.adapterURI"),
    "a pull request": ({"model": {"revision": "refs/pr/7"}}, "spec.model.revision"),
}  # fmt: skip


@pytest.mark.parametrize(("added", "refused"), STRICT.values(), ids=STRICT)
def test_the_strict_values_are_strict(
    deployment: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    added: dict[str, Any],
    refused: str | None,
) -> None:
    (block,) = re.findall(r"```yaml\n# values.yaml\n(.*?)```", TENANCY.read_text(), re.DOTALL)
    for name, value in environment(deployment(yaml.safe_load(block))).items():
        monkeypatch.setenv(name, value)
    job = yaml.safe_load((ROOT / "manifests" / "samples" / "quickstart.yaml").read_text())
    job["metadata"] |= {"namespace": "team-a", "uid": "1"}
    del job["spec"]["storage"]
    for part, fields in added.items():
        job["spec"][part] = {**job["spec"].get(part, OWN_TRACKER if part == "tracking" else {}), **fields}
    found = refusals(FineTuneJob.model_validate(job), Settings())
    assert [each.partition(":")[0] for each in found] == ([refused] if refused else [])


def test_every_bound_is_explained() -> None:
    text = TENANCY.read_text()
    assert [name for each in Bounds.model_fields.values() if f"`{(name := each.alias)}`" not in text] == []


def test_the_readme_explains_the_quickstart_itself() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = yaml.safe_load(block)["spec"]
    whole = yaml.safe_load((ROOT / "manifests" / "samples" / "quickstart.yaml").read_text())["spec"]
    assert _is_part_of(shown, whole)


def _is_part_of(part: object, whole: object) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part_of(value, whole[key]) for key, value in part.items())
    return part == whole


# Folder of dev/tools, and what tells the version there.
TESTED = {
    "Kubernetes": ("kubernetes", r"k8s\.io/kubernetes v(1\.\d+)"),
    "Helm": ("helm", r"helm\.sh/helm/v3 v(3\.\d+)"),
}


@pytest.mark.parametrize("name", TESTED)
def test_the_guide_names_the_versions_that_are_tested(name: str) -> None:
    folder, pattern = TESTED[name]
    (version,) = set(re.findall(pattern, (ROOT / "dev" / "tools" / folder / "go.mod").read_text()))
    (tested,) = re.findall(r"\(tested with (.*?)\)", (ROOT / "docs" / "getting-started" / "install.md").read_text())
    assert f"{name} {version}" in tested
