"""The guides match the code: they list every reason, and their links and manifests are valid."""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart.deployment_environment import read_environment

from finetune_operator.api import KIND, FineTuneJob, FineTuneJobSpec, OperatorReason
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneScheduleSpec, ScheduleEventReason, ScheduleReason
from finetune_operator.api.sweep import SWEEP_KIND, FineTuneSweepSpec, SweepEventReason, SweepReason
from finetune_operator.policy.limits import Bounds
from finetune_operator.policy.validation import find_violations
from finetune_operator.settings import Settings
from finetune_trainer.contract import ExitCode, Reason
from finetune_trainer.data.row_types import RowError
from finetune_trainer.training.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
HANDWRITTEN = [file for file in sorted((ROOT / "docs").rglob("*.md")) if file.name != "api.md"]
CHART_README = ROOT / "charts" / "finetune-operator" / "README.md"
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", CHART_README, *HANDWRITTEN]
TENANCY = ROOT / "docs" / "operations" / "multi-tenancy.md"
TROUBLESHOOTING = ROOT / "docs" / "operations" / "troubleshooting.md"
OWN_TRACKER = {"tool": "mlflow", "credentialsSecretRef": {"name": "finetune-mlflow"}}
SPEC_TYPES = {KIND: FineTuneJobSpec, SCHEDULE_KIND: FineTuneScheduleSpec, SWEEP_KIND: FineTuneSweepSpec}
RETRY_BY_EXIT_CODE = {
    ExitCode.OK: "no",
    ExitCode.PERMANENT: "no",
    ExitCode.TRANSIENT: "counted",
    ExitCode.INTERNAL: "counted",
    ExitCode.PREEMPTED: "free",
    ExitCode.PEER_LOST: "free",
}


def parse_table(text: str, heading: str) -> dict[str, list[str]]:
    """The table below a heading: first column, without its backticks → the others."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_troubleshooting_explains_every_trainer_reason() -> None:
    table = parse_table(TROUBLESHOOTING.read_text(), "Reasons reported by the trainer")
    assert list(table) == [str(reason) for reason in Reason]
    assert {name: cells[-1] for name, cells in table.items()} == {
        str(reason): RETRY_BY_EXIT_CODE[reason.exit_code] for reason in Reason
    }


def test_troubleshooting_explains_every_operator_reason() -> None:
    table = parse_table(TROUBLESHOOTING.read_text(), "Reasons reported by the operator")
    assert list(table) == [str(reason) for reason in OperatorReason]
    assert all(all(cells) for cells in table.values())


OWNER_TABLES = {
    "Reasons of a FineTuneSchedule": [*ScheduleReason, *ScheduleEventReason],
    "Reasons of a FineTuneSweep": [*SweepReason],
}


@pytest.mark.parametrize(("heading", "reasons"), OWNER_TABLES.items(), ids=OWNER_TABLES)
def test_troubleshooting_explains_every_reason_of_owners(heading: str, reasons: list[StrEnum]) -> None:
    table = parse_table(TROUBLESHOOTING.read_text(), heading)
    assert list(table) == [str(reason) for reason in reasons]
    assert all(all(cells) for cells in table.values())


def test_troubleshooting_names_every_event_of_sweep() -> None:
    section = TROUBLESHOOTING.read_text().split("\n## Reasons of a FineTuneSweep\n")[1].split("\n## ")[0]
    assert [reason for reason in SweepEventReason if f"`{reason}`" not in section] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_guides_relative_links_exist(guide: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", guide.read_text())
    missing = [target for target in targets if "://" not in target and not (guide.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_guides_manifests_are_valid(guide: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", guide.read_text(), re.DOTALL)
    for document in (manifest for block in blocks for manifest in yaml.safe_load_all(block)):
        if spec_type := SPEC_TYPES.get(document.get("kind")):
            spec_type.model_validate(document["spec"])


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
    "an adapter of another tenant": ({"model": {"adapterURI": "s3://evil/x"}}, "spec.model.adapterURI"),
    "a claim of another team": ({"dataset": {"sources": [{"uri": "pvc://home/x.csv"}]}}, "spec.dataset.sources[0].uri"),
    "a model cache in a claim of another team": (
        {"compute": {"modelCacheClaimName": "home"}}, "spec.compute.modelCacheClaimName",
    ),
    "a pull request": ({"model": {"revision": "refs/pr/7"}}, "spec.model.revision"),
}  # fmt: skip


@pytest.mark.parametrize(("added", "refused"), STRICT.values(), ids=STRICT)
def test_tenancy_strict_values_reject_forbidden_fields(
    deployment: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    added: dict[str, Any],
    refused: str | None,
) -> None:
    (block,) = re.findall(r"```yaml\n# values.yaml\n(.*?)```", TENANCY.read_text(), re.DOTALL)
    for name, value in read_environment(deployment(yaml.safe_load(block))).items():
        monkeypatch.setenv(name, value)
    job = yaml.safe_load((ROOT / "manifests" / "samples" / "quickstart.yaml").read_text())
    job["metadata"] |= {"namespace": "team-a", "uid": "1"}
    del job["spec"]["storage"]
    for part, fields in added.items():
        job["spec"][part] = {**job["spec"].get(part, OWN_TRACKER if part == "tracking" else {}), **fields}
    violations = find_violations(FineTuneJob.model_validate(job), Settings())
    assert [violation.partition(":")[0] for violation in violations] == ([refused] if refused else [])


def test_tenancy_guide_explains_every_limit() -> None:
    text = TENANCY.read_text()
    assert [name for field in Bounds.model_fields.values() if f"`{(name := field.alias)}`" not in text] == []


def test_readme_manifest_is_part_of_quickstart() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = yaml.safe_load(block)["spec"]
    quickstart = yaml.safe_load((ROOT / "manifests" / "samples" / "quickstart.yaml").read_text())["spec"]
    assert _is_part_of(shown, quickstart)


def _is_part_of(part: object, complete: object) -> bool:
    if isinstance(part, dict) and isinstance(complete, dict):
        return all(key in complete and _is_part_of(value, complete[key]) for key, value in part.items())
    return part == complete


# Folder of dev/tools, and the pattern of the version in it.
TESTED = {
    "Kubernetes": ("kubernetes", r"k8s\.io/kubernetes v(1\.\d+)"),
    "Helm": ("helm", r"helm\.sh/helm/v3 v(3\.\d+)"),
}


@pytest.mark.parametrize("name", TESTED)
def test_install_guide_names_tested_versions(name: str) -> None:
    folder, pattern = TESTED[name]
    (version,) = set(re.findall(pattern, (ROOT / "dev" / "tools" / folder / "go.mod").read_text()))
    (tested,) = re.findall(r"\(tested with (.*?)\)", (ROOT / "docs" / "getting-started" / "install.md").read_text())
    assert f"{name} {version}" in tested


def test_readme_rejected_row_has_message_of_trainer() -> None:
    (quoted,) = re.findall(r"train\.jsonl line 17: (.*)", (ROOT / "README.md").read_text())
    with pytest.raises(RowError) as caught:
        METHODS["sft"].detect_format({"question": "Is it waterproof?", "answer": "Splashes are fine."})
    assert str(caught.value) == quoted
