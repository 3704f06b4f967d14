"""FineTuneSchedules, their runs, champions and results, as the API server and trainers have them."""

from __future__ import annotations

from typing import Any

from tests.support.operator.builders import NOW, Body, merge_objects

from finetune_operator.api.schedule import Champion, FineTuneSchedule, ScheduledRun
from finetune_operator.observed.complete_run import CompleteRun
from finetune_trainer.contract import Result

MODEL_URI = "hf://org/name"
REVISION = "0123abc"


def build_digest(name: str) -> str:
    """Return the digest of the result of a run."""
    return "sha256:" + name.encode().hex().rjust(64, "0")[-64:]


def build_schedule_manifest(name: str = "bot", namespace: str = "team", spec: Body | None = None) -> Body:
    """Build a FineTuneSchedule as a user writes it."""
    base = {
        "schedule": "0 3 * * 1",
        "template": {
            "spec": {
                "model": {"uri": MODEL_URI},
                "dataset": {
                    "sources": [{"uri": "s3://bucket/data.jsonl"}],
                    "validation": {"sources": [{"uri": "s3://bucket/validation.jsonl"}]},
                },
                "training": {"epochs": 1},
                "evaluation": {"task": "classification"},
                "output": {"uri": "s3://bucket/bot/{name}"},
            }
        },
        "promotion": {"rules": [{"metric": "accuracy"}]},
        "alias": {"uri": "s3://bucket/bot/champion.json"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneSchedule",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merge_objects(base, spec or {}),
    }


def build_schedule(spec: Body | None = None, status: Body | None = None) -> FineTuneSchedule:
    """Build a FineTuneSchedule as the operator parses it."""
    manifest = build_schedule_manifest(spec=spec)
    meta = {**manifest["metadata"], "uid": "uid-schedule", "generation": 1}
    return FineTuneSchedule.model_validate({**manifest, "metadata": meta, "status": status})


def build_run(name: str = "bot-2", **fields: Any) -> ScheduledRun:
    """Build a complete run that was compared with the champion `bot-1` and is not decided yet."""
    base = {
        "trigger": "Schedule",
        "scheduled_time": NOW,
        "template_hash": "0",
        "champion": "bot-1",
        "champion_digest": build_digest("bot-1"),
        "created": True,
        "phase": "Complete",
        "reason": "Completed",
        "completion_time": NOW,
        "adapter_uri": f"s3://bucket/bot/{name}",
        "digest": build_digest(name),
    }
    return ScheduledRun.model_validate({"name": name, **base, **fields})


def build_champion(name: str = "bot-1", **fields: Any) -> Champion:
    """Build a champion of the base model of the template."""
    base = {
        "adapter_uri": f"s3://bucket/bot/{name}",
        "digest": build_digest(name),
        "model_uri": MODEL_URI,
        "model_revision": REVISION,
        "promoted_time": NOW,
        "reason": "Promoted",
    }
    return Champion.model_validate({"run": name, **base, **fields})


def build_change(metric: str = "accuracy", **fields: Any) -> Body:
    """Build a significant improvement of the accuracy from 0.8 to 0.9, as a trainer reports it."""
    base = {"higherIsBetter": True, "baseline": 0.8, "value": 0.9, "change": 0.1, "low": 0.02, "high": 0.18}
    return {"metric": metric, **base, "samples": 200, **fields}


def build_comparison(*changes: Body, name: str = "bot-1", **fields: Any) -> Body:
    """Build the comparison with the champion, as a trainer reports it."""
    return {"name": "champion", "digest": build_digest(name), "heldOut": True, "changes": list(changes), **fields}


def build_result(name: str = "bot-2", **fields: Any) -> Body:
    """Build the result of a run that is better than the champion `bot-1`, as a trainer reports it."""
    base = {
        "adapterURI": f"s3://bucket/bot/{name}",
        "digest": build_digest(name),
        "modelRevision": REVISION,
        "metrics": {"accuracy": 0.9, "evalLoss": 1.5, "trainSeconds": 60.0},
        "verdicts": {"overfitting": "none", "forgetting": "none", "bias": "none"},
        "baselines": [build_comparison(build_change())],
    }
    return {**base, **fields}


def build_complete_run(name: str = "bot-2", model_uri: str = MODEL_URI, **fields: Any) -> CompleteRun:
    """Build a complete run that is better than the champion `bot-1`."""
    return CompleteRun(name, model_uri, Result.model_validate(build_result(name, **fields)), NOW)
