"""Recognizes objects that Argo CD or Flux keeps as they are in Git."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_cli.session import Session

# Names of field managers, and labels or annotations, by tool.
_MANAGERS = {
    "argocd": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}
_KEYS = {
    "argocd.argoproj.io/": "Argo CD",
    "kustomize.toolkit.fluxcd.io/": "Flux",
    "helm.toolkit.fluxcd.io/": "Flux",
}


def find_gitops_tool(body: Mapping[str, Any]) -> str | None:
    """Return the tool that applies an object from Git, or None."""
    metadata = body["metadata"]
    for field in metadata.get("managedFields", []):
        for prefix, tool in _MANAGERS.items():
            if str(field.get("manager", "")).startswith(prefix):
                return tool
    keys = [*metadata.get("labels", {}), *metadata.get("annotations", {})]
    return next((tool for prefix, tool in _KEYS.items() if any(key.startswith(prefix) for key in keys)), None)


def warn_of_gitops(session: Session, kind: str, name: str, body: Mapping[str, Any], field: str) -> None:
    """Print a note if a change of an object is reverted by the tool that applies it from Git."""
    if tool := find_gitops_tool(body):
        session.terminal.print_note(
            f"warning: {kind} {name} is applied from Git by {tool}, which may revert this change: commit {field} there"
        )
