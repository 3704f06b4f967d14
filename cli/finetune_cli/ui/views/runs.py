"""The list of runs: filters, order and pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from finetune_cli.ui.source import Run
from finetune_operator.client import RunSummary

PAGE_SIZE = 100
_FILTERS = ("phase", "method", "owner", "namespace")
_NEWEST = "newest"


def _get_progress(run: Run) -> float:
    progress = run.job.status.progress if run.job.status else None
    return -progress.percentage if progress else 1


def _get_loss(run: Run) -> float:
    loss = run.summary.loss if run.summary.eval_loss is None else run.summary.eval_loss
    return float("inf") if loss is None else loss


_ORDERS: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.summary.name,
    "phase": lambda run: run.summary.phase,
    "progress": _get_progress,
    "loss": _get_loss,
}
"""Keys of the order by column. The cluster's own order is the newest first."""


@dataclass(frozen=True)
class RunFilter:
    """What the list shows, as in the query of its address."""

    text: str = ""
    phase: str = ""
    method: str = ""
    owner: str = ""
    namespace: str = ""
    sort: str = _NEWEST
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> RunFilter:
        """Read a query. Unknown values select nothing or the default."""
        texts = {each.name: query.get(each.name, "").strip() for each in fields(cls) if each.name != "page"}
        sort = texts["sort"] if texts["sort"] in _ORDERS else _NEWEST
        page = query.get("page", "1")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1
        return cls(**{**texts, "sort": sort}, page=max(number, 1))

    def link(self, **changes: Any) -> str:
        """Return the address of the list with other values. Without a page, it is the first one."""
        changed = replace(self, **{"page": 1, **changes})
        defaults = RunFilter()
        query = {name: value for name, value in vars(changed).items() if value != vars(defaults)[name]}
        return f"/?{urlencode(query)}" if query else "/"

    @property
    def is_active(self) -> bool:
        """Whether the filter may hide runs."""
        return any((self.text, self.phase, self.method, self.owner, self.namespace))

    def accepts(self, summary: RunSummary) -> bool:
        """Return whether the list shows this run. Each word of the text must occur in a field."""
        if any(vars(self)[name] not in ("", vars(summary)[name]) for name in _FILTERS):
            return False
        found = " ".join(
            (summary.name, summary.namespace, summary.model_uri, summary.owner, summary.reason, summary.adapter_uri)
        ).lower()
        return all(word in found for word in self.text.lower().split())


def build_runs_context(runs: Sequence[Run], query: RunFilter) -> dict[str, Any]:
    """Return what the list shows."""
    shown = [run for run in runs if query.accepts(run.summary)]
    if query.sort in _ORDERS:
        shown.sort(key=_ORDERS[query.sort])
    pages = max(1, -(-len(shown) // PAGE_SIZE))
    page = min(query.page, pages)
    return {
        "query": query,
        "runs": shown[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        "matches": len(shown),
        "total": len(runs),
        "page": page,
        "pages": pages,
        "options": {name: _list_options(runs, name) for name in _FILTERS},
        "phases": _count_phases(runs),
        "announcement": _announce(runs),
    }


def _list_options(runs: Sequence[Run], name: str) -> list[str]:
    return sorted({value for run in runs if (value := vars(run.summary)[name])})


def _count_phases(runs: Sequence[Run]) -> list[tuple[str, int]]:
    phases = [run.summary.phase for run in runs]
    return [(phase, phases.count(phase)) for phase in sorted(set(phases))]


def _announce(runs: Sequence[Run]) -> str:
    """Return the sentence for screen readers. It changes when a run changes its phase, not with each step."""
    return ", ".join(f"{count} {phase}" for phase, count in _count_phases(runs))
