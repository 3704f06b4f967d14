"""The wheel with the extra `cli` installs on every supported Python, and needs no library of the trainer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("linux", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
HEAVY_PACKAGES = ("torch", "transformers", "peft", "datasets", "kopf", "pyarrow", "mlflow", "prometheus_client")
PYENV_VERSIONS = Path.home() / ".pyenv" / "versions"


def run_uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")
    }
    return subprocess.run(
        [shutil.which("uv") or "uv", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def find_interpreters() -> list[Path]:
    """Return one interpreter of each supported version that this machine has."""
    candidates = {version: shutil.which(f"python{version}") for version in VERSIONS}
    found = {version: Path(path) for version, path in candidates.items() if path and _works(Path(path))}
    for folder in sorted(PYENV_VERSIONS.glob("3.*")) if PYENV_VERSIONS.is_dir() else ():
        version = ".".join(folder.name.split(".")[:2])
        if version in VERSIONS:
            found.setdefault(version, folder / "bin" / "python")
    own = ".".join(map(str, sys.version_info[:2]))
    found.setdefault(own, Path(sys.executable))
    return [found[version] for version in sorted(found)]


def _works(python: Path) -> bool:
    """Return whether it is an interpreter: pyenv has scripts for versions that are not active."""
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run_uv("build", "--wheel", "--out-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=find_interpreters(), ids=lambda path: path.parts[-3])
def environment(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of a virtual environment with the wheel and its extra `cli`."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    created = run_uv("venv", "--python", request.param, folder)
    assert created.returncode == 0, created.stderr
    python = folder / "bin" / "python"
    installed = run_uv("pip", "install", "--python", python, "--only-binary", ":all:", f"{wheel}[cli]")
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


def call(program: Path, *arguments: str | Path) -> str:
    """Run a program outside of the checkout, with warnings as errors, and return its output."""
    result = subprocess.run(
        [program, *arguments], cwd=program.parent, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(program.parent), "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.timeout(180)
def test_wheel_installed_command_line_works(environment: Path) -> None:
    assert "Usage: finetune" in call(environment / "finetune", "--help")
    assert "kubectl finetune" in call(environment / "kubectl-finetune", "--help")
    manifest = environment / "job.yaml"
    manifest.write_text(call(environment / "finetune", "init", "--name", "bot", "--data", "s3://data/train.jsonl"))
    samples = [ROOT / "manifests" / "samples" / name for name in ("quickstart.yaml", "sweep.yaml", "schedule.yaml")]
    report = call(environment / "finetune", "validate", manifest, *samples)
    assert report.count(" is valid\n") == 4
    call(environment / "python", "-c", "import finetune_operator.client, finetune_cli.ui.app")


@pytest.mark.timeout(180)
def test_wheel_environment_has_no_library_of_the_trainer(environment: Path) -> None:
    code = f"import importlib.util as u; print(*[name for name in {HEAVY_PACKAGES} if u.find_spec(name)])"
    assert call(environment / "python", "-c", code).strip() == ""


@pytest.mark.timeout(300)
def test_wheel_requirements_have_binaries_for_all_pythons_and_platforms() -> None:
    def resolve(case: tuple[str, str]) -> str:
        version, platform = case
        arguments = [
            "pip", "compile", "--quiet", "pyproject.toml", "--extra", "cli", "--python-version", version,
            "--python-platform", platform, "--only-binary", ":all:", "--no-header", "--no-annotate",
        ]  # fmt: skip
        compiled = run_uv(*arguments, "--offline")
        if compiled.returncode:  # the cache lacks the metadata of a package
            compiled = run_uv(*arguments)
        return "" if compiled.returncode == 0 and "kubernetes==" in compiled.stdout else f"{case}: {compiled.stderr}"

    with ThreadPoolExecutor(4) as pool:
        failures = [message for message in pool.map(resolve, product(VERSIONS, PLATFORMS)) if message]
    assert failures == []
