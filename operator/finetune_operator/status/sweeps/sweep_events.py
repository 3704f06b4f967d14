"""The Events about a FineTuneSweep that follow from a change of its status."""

from __future__ import annotations

from finetune_operator.api.sweep import FineTuneSweepStatus, SweepEventReason, SweepReason
from finetune_operator.status.events import EventContent
from finetune_operator.status.sweeps.trials import is_cut

_WARNING_REASONS = frozenset(
    {SweepReason.BUDGET_EXHAUSTED, SweepReason.REPORT_FAILED, SweepReason.NOT_ALLOWED, SweepReason.TRIAL_REFUSED}
)


def list_sweep_events(old: FineTuneSweepStatus, new: FineTuneSweepStatus) -> list[EventContent]:
    """Return what Events say about a change: trials that were created or cut, and another reason of the headline."""
    old_rows = {row.name: row for row in old.trials}
    events = []
    for row in new.trials:
        old_row = old_rows.get(row.name)
        if row.created and not (old_row and old_row.created):
            message = f"Created the FineTuneJob {row.name}: {row.parameters.describe() or 'the template'}."
            events.append(EventContent("Normal", SweepEventReason.TRIAL_CREATED, message))
        if is_cut(row) and not (old_row and is_cut(old_row)):
            message = f"The FineTuneJob {row.name} is cancelled, because others are better at step {row.cut_at_step}."
            events.append(EventContent("Normal", SweepEventReason.TRIAL_CUT, message))
    return [*events, *_list_headline_events(old, new)]


def _list_headline_events(old: FineTuneSweepStatus, new: FineTuneSweepStatus) -> list[EventContent]:
    if not new.conditions or new.reason == old.reason:
        return []
    headline = new.conditions[0]
    is_warning = headline.type == "Failed" or headline.reason in _WARNING_REASONS
    return [EventContent("Warning" if is_warning else "Normal", headline.reason, headline.message)]
