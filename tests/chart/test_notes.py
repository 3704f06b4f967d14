"""The notes of a release name the next steps, and how its security contexts were weakened."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# Helm renders the notes only with a cluster. Another template can include them.
INCLUDE_NOTES = 'notes: {{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}'


@pytest.fixture
def notes(helm: str, chart: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that renders the notes with `--set` arguments."""
    shutil.copytree(chart, tmp_path / "chart")
    (tmp_path / "chart" / "templates" / "notes.yaml").write_text(INCLUDE_NOTES)

    def render_notes(*settings: str) -> str:
        flags = [word for setting in settings for word in ("--set", setting)]
        options = ["--namespace", "ml", "--show-only", "templates/notes.yaml"]
        command = [helm, "template", "tuner", tmp_path / "chart", *options, *flags]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return str(json.loads(result.stdout.partition("notes: ")[2]))

    return render_notes


def test_notes_default_names_next_steps(notes: Callable[..., str]) -> None:
    text = notes()
    assert "helm test tuner --namespace ml" in text
    assert "Alerts are not installed." in text
    assert "WARNING" not in text
    assert "not part of this release" not in text
    assert "FineTuneSchedule (fts)" in text


def test_notes_alerts_enabled_names_their_check(notes: Callable[..., str]) -> None:
    text = notes("metrics.prometheusRule.enabled=true", "metrics.skipCRDCheck=true")
    assert "kubectl --namespace ml get prometheusrule,servicemonitor,podmonitor" in text
    assert "Alerts are not installed." not in text


WEAKENED = {
    "podSecurityContext.runAsNonRoot=false": "runAsNonRoot is not true",
    "securityContext.runAsUser=0": "runAsUser is 0",
    "podSecurityContext.seccompProfile.type=Unconfined": "seccompProfile.type is neither RuntimeDefault nor Localhost",
    "securityContext.allowPrivilegeEscalation=null": "allowPrivilegeEscalation is not false",
    "securityContext.privileged=true": "privileged is true",
    "securityContext.capabilities.drop=null": "capabilities.drop does not contain ALL",
    "securityContext.capabilities.add={NET_ADMIN}": "capabilities.add is not empty",
}


@pytest.mark.parametrize("setting", WEAKENED)
def test_notes_weakened_security_context_is_listed(notes: Callable[..., str], setting: str) -> None:
    warning = notes(setting).partition("WARNING: ")[2]
    assert warning.splitlines()[1:] == [f"  {WEAKENED[setting]}"]
