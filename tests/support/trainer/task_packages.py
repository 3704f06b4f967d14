"""The packages that the image of task pods lacks: all that the extra `task` does not need."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

PROJECT = "finetune-operator"


def list_missing_modules() -> list[str]:
    """Return the importable names, of this environment, of packages that neither the project nor its extra `task`
    requires, directly or through others."""
    installed = _collect_requirements(PROJECT, {"task"})
    distributions = metadata.packages_distributions()
    return sorted(
        name for name, owners in distributions.items() if not installed.intersection(map(_normalize_name, owners))
    )


def block_missing_packages(program: str) -> str:
    """Return the program with statements before it that let imports of these names fail."""
    return f"import sys\nsys.modules.update(dict.fromkeys({list_missing_modules()}))\n{program}"


def _collect_requirements(name: str, extras: set[str]) -> set[str]:
    found: set[str] = set()
    pending = {(_normalize_name(name), extra) for extra in ("", *extras)}
    seen: set[tuple[str, str]] = set()
    while pending:
        distribution, extra = item = pending.pop()
        seen.add(item)
        found.add(distribution)
        pending |= _list_requirements(distribution, extra) - seen
    return found


def _list_requirements(distribution: str, extra: str) -> set[tuple[str, str]]:
    """Return the packages that a package needs for one of its extras or, for an empty text, for none."""
    try:
        requirements = map(Requirement, metadata.requires(distribution) or [])
    except metadata.PackageNotFoundError:
        return set()
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {(_normalize_name(each.name), wanted) for each in needed for wanted in ("", *each.extras)}


def _normalize_name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
