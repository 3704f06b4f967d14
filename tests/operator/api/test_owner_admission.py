"""The API server accepts valid schedules and sweeps with their defaults, and refuses others by a sentence."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.cluster.manifests import ABSENT, apply_changes, build_valid_manifest
from tests.support.operator.api_server import KUBERNETES_VERSIONS
from tests.support.operator.namespace_harness import RequestRejected

from finetune_operator.api import API_VERSION
from finetune_operator.api.schedule import SCHEDULE_KIND, SCHEDULE_PLURAL, FineTuneSchedule
from finetune_operator.api.sweep import SWEEP_KIND, SWEEP_PLURAL, FineTuneSweep

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster
Manifest = dict[str, Any]
RUN = "spec.template.spec"
VALIDATION = f"{RUN}.dataset.validation"
HELD_OUT = {"sources": [{"uri": "s3://data/held-out.jsonl"}]}


def _build_owner(kind: str, **spec: object) -> Manifest:
    run = build_valid_manifest()["spec"]
    run["dataset"]["validation"] = copy.deepcopy(HELD_OUT)
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": "bot"},
        "spec": {"template": {"spec": run}, **spec},
    }


SCHEDULE = _build_owner(SCHEDULE_KIND)
SWEEP = _build_owner(SWEEP_KIND, output={"uri": "s3://adapters/lr/"})
GRADER = {"name": "label", "stringCheck": {}}
GRPO = {
    f"{RUN}.training": {"epochs": 1, "method": "grpo", "rewards": [{"grader": "label"}]},
    f"{RUN}.evaluation": {"graders": [GRADER]},
}
PREFERENCES = {f"{RUN}.training.method": "dpo", f"{RUN}.dataset.sources.0.format": "preference"}
RATES = {"values": [1e-4, 1e-3]}
ACCEPTED: dict[str, tuple[str, Manifest]] = {
    "schedule": (SCHEDULE_PLURAL, SCHEDULE),
    "schedule of all": (SCHEDULE_PLURAL, apply_changes(SCHEDULE, {
        "spec.schedule": "30 2 * * MON-FRI", "spec.timeZone": "America/Argentina/Buenos_Aires",
        "spec.runAt": "2026-12-01T10:00:00+01:00", "spec.onDataChange": {}, "spec.startFrom": "champion",
        "spec.champion": {"run": "bot-29412345"}, "spec.alias": {"uri": "s3://adapters/bot.json"},
        "spec.template.metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}},
    })),
    "sharded schedule with steps of a fixed size": (SCHEDULE_PLURAL, apply_changes(SCHEDULE, {
        f"{RUN}.training.globalBatchSize": 32, f"{RUN}.compute": {"gpusPerNode": 8, "sharding": "full"},
    })),
    "sweep of batch sizes in steps of a fixed size": (SWEEP_PLURAL, apply_changes(SWEEP, {
        f"{RUN}.training.globalBatchSize": 8, "spec.parameters": {"batchSize": {"values": [1, 2, 4]}},
    })),
    "schedule without validation": (
        SCHEDULE_PLURAL, apply_changes(SCHEDULE, {VALIDATION: ABSENT, "spec.promotion": {"mode": "manual"}})),
    "sweep": (SWEEP_PLURAL, SWEEP),
    "random sweep": (SWEEP_PLURAL, apply_changes(SWEEP, {
        "spec.parameters": {
            "learningRate": {"min": 1e-5, "max": 1e-2, "scale": "log"}, "loraRank": {"min": 4, "max": 8},
        },
        "spec.search": {"type": "random", "trials": 100},
    })),
    "halving": (SWEEP_PLURAL, apply_changes(SWEEP, {"spec.halving": {"atSteps": [200, 400]}})),
    "beta by reward accuracy": (SWEEP_PLURAL, apply_changes(SWEEP, {
        "spec.objective": {"metric": "evalRewardAccuracy"}, "spec.parameters": {"beta": {"values": [0.1, 0.5]}},
        **PREFERENCES,
    })),
    "a grader": (SWEEP_PLURAL, apply_changes(SWEEP, {
        "spec.objective": {"metric": "label"}, f"{RUN}.evaluation": {"graders": [GRADER]},
    })),
    "a reward": (SWEEP_PLURAL, apply_changes(SWEEP, {"spec.objective": {"metric": "label"}, **GRPO})),
    "promotion by a grader": (SCHEDULE_PLURAL, apply_changes(SCHEDULE, {
        "spec.promotion": {"rules": [{"metric": "label", "minImprovement": 0}]},
        f"{RUN}.evaluation": {"graders": [GRADER]},
    })),
    "accuracy": (SWEEP_PLURAL, apply_changes(SWEEP, {
        "spec.objective": {"metric": "accuracy"}, f"{RUN}.evaluation": {"task": "classification"},
    })),
    "fraction in a sweep": (SWEEP_PLURAL, apply_changes(SWEEP, {VALIDATION: {"fraction": 0.1}})),
}  # fmt: skip
REJECTED_TEMPLATES: list[tuple[Manifest, str]] = [
    ({f"{RUN}.training.globalBatchSize": 8, f"{RUN}.compute.gpusPerNode": 3}, "compute.nodes x compute.gpusPerNode"),
    ({f"{RUN}.training.globalBatchSize": 9}, "globalBatchSize must be a multiple of batchSize"),
    ({f"{RUN}.training.warmupSteps": 9, f"{RUN}.training.warmupRatio": 0.5}, "warmupSteps replaces warmupRatio"),
    ({f"{RUN}.compute.sharding": "full", f"{RUN}.model.quantization": "nf4"}, "needs model.quantization none"),
    ({f"{RUN}.compute.sharding": "full", f"{RUN}.training.lora.variant": "dora"}, "lora.variant lora or rslora"),
]
REJECTED_SCHEDULES: list[tuple[Manifest, str]] = [
    *REJECTED_TEMPLATES,
    ({f"{RUN}.output.uri": "s3://adapters/bot"}, "must contain {name}"),
    ({VALIDATION: {"fraction": 0.1}}, "fraction draws other rows"),
    ({VALIDATION: ABSENT}, "promotion.mode auto needs"),
    ({f"{RUN}.training.method": "dpo", f"{RUN}.dataset.sources.0.format": "preference"}, "promotion.mode auto needs"),
    ({f"{RUN}.evaluation": {"baselines": [{"name": "champion", "adapterURI": "s3://a/b"}]}}, "none with the name"),
    ({"spec.promotion": {"vetoes": ["bias"]}}, "the veto bias needs"),
    ({"spec.promotion": {"rules": [{"metric": "accuracy"}]}}, "a metric that runs do not measure"),
    (
        {"spec.promotion": {"rules": [{"metric": "accuracy"}]}, f"{RUN}.evaluation": {"task": "summarization"}},
        "summarization has rouge1, rouge2, rougeL",
    ),
    ({"spec.promotion": {"rules": []}}, "at least 1 items"),
    ({"spec.alias": {"uri": "s3://a/champion"}}, "uri must end with .json"),
    ({"spec.alias": {"uri": "file:///champion.json"}}, "uri must be s3://bucket/prefix"),
    ({"spec.alias": {"uri": "s3://data/bot/champion.json"}, f"{RUN}.dataset.sources.0.uri": "s3://data/bot/"},
     "alias.uri must not be below"),
    ({"spec.schedule": "0 3 * * 1; rm"}, "should match"),
    ({"spec.runAt": "tomorrow"}, "date-time"),
    ({"spec.concurrencyPolicy": "Queue"}, "Unsupported value"),
    ({"spec.template.metadata": {"labels": {"finetune.dev/schedule": "x"}}}, "reserved for the operator"),
    ({f"{RUN}.suspend": True}, "unknown field"),
    ({f"{RUN}.training.lora.rank": 0}, "greater than or equal to 1"),
    ({f"{RUN}.training.maxSteps": 3}, "exactly one of epochs and maxSteps"),
    ({"metadata.name": "b" * 41}, "at most 40 characters"),
    ({"metadata.name": "a.b"}, "must be a DNS label"),
]  # fmt: skip
REJECTED_SWEEPS: list[tuple[Manifest, str]] = [
    *REJECTED_TEMPLATES,
    ({f"{RUN}.training.globalBatchSize": 8, "spec.parameters": {"gradientAccumulation": {"values": [1, 2]}}},
     "parameters.gradientAccumulation has no effect with template.spec.training.globalBatchSize"),
    ({f"{RUN}.training.warmupSteps": 8, "spec.parameters": {"warmupRatio": {"values": [0.1, 0.2]}}},
     "parameters.warmupRatio has no effect with template.spec.training.warmupSteps"),
    ({f"{RUN}.output.uri": "s3://adapters/bot"}, "must contain {name}"),
    ({"spec.parameters": {"learningRate": {"values": [2]}}}, "less than or equal to 1"),
    ({"spec.parameters": {"loraRank": {"values": [1.5]}}}, "must be of type integer"),
    ({"spec.parameters": {"rank": {"values": [8]}}}, "unknown field"),
    ({"spec.parameters": {"learningRate": {"values": []}}}, "at least 1 items"),
    ({"spec.parameters": {"learningRate": {}}}, "set either values, or min and max"),
    ({"spec.parameters": {"learningRate": {"min": 1e-4, "max": 1e-3}}}, "min and max need search.type random"),
    ({"spec.parameters": {"loraDropout": {"min": 0, "max": 0.5, "scale": "log"}},
      "spec.search": {"type": "random", "trials": 3}}, "scale log needs a min greater than 0"),
    ({"spec.search": {"type": "random"}}, "search.type random needs trials"),
    ({"spec.search": {"trials": 3}}, "search.type random needs trials"),
    ({"spec.parameters": {"learningRate": {"values": [n / 100 for n in range(1, 12)]},
                          "loraRank": {"values": list(range(1, 11))}}}, "more than 100 trials"),
    ({"spec.parameters": {"learningRate": RATES}, "spec.search": {"type": "random", "trials": 60}, "spec.seeds": 2},
     "more than 100 trials"),
    ({VALIDATION: ABSENT}, "trials are compared on template.spec.dataset.validation"),
    ({"spec.objective": {"metric": "accuracy"}}, "the trials do not measure objective.metric"),
    ({"spec.objective": {"metric": "rougeL"}, f"{RUN}.evaluation": {"task": "classification"}},
     "classification has accuracy, macroF1"),
    ({"spec.objective": {"metric": "trainSeconds"}, f"{RUN}.evaluation": {"task": "chat"}},
     "the trials do not measure objective.metric"),
    ({"spec.objective": {"metric": "crossValidationLoss"}}, "training.crossValidation has crossValidationLoss"),
    ({"spec.objective": {"metric": "perplexity"}, **PREFERENCES}, "dpo has evalLoss, evalRewardAccuracy"),
    ({"spec.parameters": {"beta": {"values": [0.1, 0.5]}}, **PREFERENCES}, "beta changes the scale of the loss"),
    ({"spec.objective": {"metric": "other"}, **GRPO}, "the trials do not measure objective.metric"),
    ({"spec.objective": {"metric": "label"}, "spec.parameters": {"beta": {"values": [0.1, 0.5]}}, **GRPO},
     "parameters.beta has no effect on methods grpo and rloo"),
    ({"spec.parameters": {"learningRate": {"values": [1e-4, 0.0001]}}}, "values must be different"),
    ({"spec.parameters": {"scheduler": {"values": ["linear", "linear"]}}}, "values must be different"),
    ({"spec.halving": {"atSteps": [200]}, "spec.parameters": {"batchSize": {"values": [1, 2]}}}, "at equal steps"),
    ({"spec.halving": {"atSteps": [200, 200]}}, "must be different steps"),
    ({"spec.halving": {"atSteps": [200]}, "spec.objective": {"metric": "perplexity"}}, "needs the objective evalLoss"),
    ({"spec.parameters": {"maxSteps": {"values": [5]}}}, "parameters.maxSteps needs"),
    ({"spec.output": ABSENT}, "Required value"),
    ({"spec.output.uri": "s3://adapters/{name}/"}, "wildcards or braces"),
]  # fmt: skip


async def _create(world: NamespaceHarness, plural: str, manifest: Manifest) -> Manifest:
    return await world.call("POST", f"{world.path(plural)}?fieldValidation=Strict", manifest)


@pytest.mark.parametrize("kubernetes_version", [KUBERNETES_VERSIONS[0], KUBERNETES_VERSIONS[-1]])
async def test_api_server_valid_owner_is_accepted_with_defaults(world: NamespaceHarness) -> None:
    for index, (name, (plural, manifest)) in enumerate(ACCEPTED.items()):
        named = {**manifest, "metadata": {"name": f"bot-{index}"}}
        stored = await _create(world, plural, named)
        parsed = {SCHEDULE_PLURAL: FineTuneSchedule, SWEEP_PLURAL: FineTuneSweep}[plural].model_validate(stored)
        assert parsed.to_json()["spec"] == stored["spec"], name
        assert stored["spec"]["template"]["spec"]["training"]["lora"]["rank"] == 16, name


async def test_api_server_sweep_without_parameters_tries_published_learning_rates(world: NamespaceHarness) -> None:
    stored = await _create(world, SWEEP_PLURAL, SWEEP)
    assert stored["spec"]["parameters"] == {"learningRate": {"values": [1e-4, 3e-4, 1e-3], "scale": "linear"}}


@pytest.mark.parametrize(
    ("plural", "valid", "cases"),
    [(SCHEDULE_PLURAL, SCHEDULE, REJECTED_SCHEDULES), (SWEEP_PLURAL, SWEEP, REJECTED_SWEEPS)],
    ids=["schedules", "sweeps"],
)
async def test_api_server_invalid_owner_is_rejected(
    world: NamespaceHarness, plural: str, valid: Manifest, cases: list[tuple[Manifest, str]]
) -> None:
    for changes, message in cases:
        with pytest.raises(RequestRejected) as error:
            await _create(world, plural, apply_changes(valid, changes))
        assert message in str(error.value), changes


async def test_api_server_template_of_schedule_can_change_and_sweep_cannot(world: NamespaceHarness) -> None:
    for plural, manifest in ((SCHEDULE_PLURAL, SCHEDULE), (SWEEP_PLURAL, SWEEP)):
        await _create(world, plural, manifest)
    change = {"spec": {"template": {"spec": {"training": {"learningRate": 1e-3}, "model": {"uri": "s3://models/b/"}}}}}
    await world.call("PATCH", world.path(SCHEDULE_PLURAL, "bot"), change)
    with pytest.raises(RequestRejected, match="template is immutable"):
        await world.call("PATCH", world.path(SWEEP_PLURAL, "bot"), change)
    await world.call("PATCH", world.path(SWEEP_PLURAL, "bot"), {"spec": {"maxParallel": 4, "suspend": True}})
    await world.call("PATCH", world.path(SWEEP_PLURAL, "bot"), {"spec": {"cancel": True}})
    with pytest.raises(RequestRejected, match="cancel cannot be undone"):
        await world.call("PATCH", world.path(SWEEP_PLURAL, "bot"), {"spec": {"cancel": False}})
