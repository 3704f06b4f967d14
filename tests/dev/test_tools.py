"""The pinned programs."""

from pathlib import Path

import pytest

from local_cluster import tools
from local_cluster.tools import GoModule

ALL = [*tools.MODULES, tools.KUEUE, tools.KUBEFLOW_TRAINER]
BY_NAME = {module.name: module for module in tools.MODULES}


@pytest.mark.parametrize("module", ALL, ids=lambda module: str(module.name))
def test_every_module_is_pinned_and_builds_what_it_names_as_tools(module: GoModule) -> None:
    text = (module.source / "go.mod").read_text()
    assert (module.source / "go.sum").exists()
    for package in module.packages:
        assert package == "." or f"\n\t{package}\n" in text or f"\ntool {package}\n" in text


def test_the_version_that_is_stamped_is_the_one_that_is_pinned() -> None:
    text = (BY_NAME["kubernetes"].source / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{tools.KUBERNETES_VERSION}" in text


@pytest.mark.parametrize(
    ("module", "output"), [("etcd", "/target/etcd"), ("helm", "/target/helm"), ("kubernetes", "/target/")]
)
def test_programs_get_the_names_that_they_are_called_by(module: str, output: str) -> None:
    command = BY_NAME[module].build_command("go", Path("/target"))
    assert command[command.index("-o") + 1] == output


def test_other_pins_are_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = BY_NAME["helm"]
    stamped = GoModule(plain.name, plain.packages, plain.programs, "-X other")
    assert plain.folder.parent == stamped.folder.parent == tmp_path / "finetune-operator" / "bin"
    assert plain.folder != stamped.folder


@pytest.mark.parametrize(
    ("text", "version"), [("go1.26.8\n", (1, 26, 8)), ("go1.27", (1, 27)), ("go1.28-rc1", (1, 28)), ("devel", ())]
)
def test_versions_of_go(text: str, version: tuple[int, ...]) -> None:
    assert tools.parse_version(text) == version
