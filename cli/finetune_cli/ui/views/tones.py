"""Colours of phases and verdicts. The text says the same."""

from __future__ import annotations

_PHASES = {"Complete": "good", "Failed": "bad", "Running": "active", "Suspended": "unsure"}


def get_phase_tone(phase: str) -> str:
    """Return the class of a phase: `good`, `bad`, `active`, `unsure` or `idle`."""
    return _PHASES.get(phase, "idle")


def get_verdict_tone(verdict: str) -> str:
    """Return the class of a verdict of a comparison."""
    return verdict if verdict in ("better", "worse") else "unclear"
