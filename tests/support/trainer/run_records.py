"""Example records of runs, for the tests of the model card, the report page and the provenance."""

from __future__ import annotations

import math
from typing import Any

from finetune_trainer.contract import DatasetReport, TrainerConfig
from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import (
    BiasFinding,
    BiasResult,
    ConfusionMatrix,
    CrossValidationResult,
    EnergyUse,
    Estimate,
    EvaluationReport,
    GateCheck,
    GeneratedAnswer,
    LengthBin,
    LossPoint,
    Measure,
    OverfittingResult,
    PreflightFinding,
    RejectedRow,
    RowScores,
    Sample,
    SampleTurn,
)
from finetune_trainer.records.manifest import AdapterManifest, FileRecord, InputRecord, ModelRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADAPTER_FACTS = AdapterInfo(
    "org/base-1b", 1_048_576, 1_236_814_848, "bf16", ("k_proj", "q_proj", "v_proj"), "supervised fine-tuning"
)
DATASET_REPORT = DatasetReport(
    rows=12_000,
    kept=10_423,
    validation=540,
    rejected={"duplicate": 310, "invalid": 12, "overlength": 690, "leaked": 25},
    cleaned=81,
    truncated=7,
    sensitive={"email": 44, "phone": 3},
    redacted=44,
    tokens=2_345_678,
    supervised_tokens=1_111_222,
    digest="sha256:" + "d" * 64,
)
CONFIG: dict[str, Any] = {
    "model": {"uri": "hf://org/base-1b", "revision": "main", "maxLength": 1024},
    "dataset": {
        "sources": [{"uri": "s3://data/support/*.jsonl"}],
        "validation": {"fraction": 0.05, "seed": 7},
        "preparation": {"redact": ["email"], "maxInvalidFraction": 0.01},
    },
    "training": {"epochs": 3, "seed": 11, "learningRate": 2e-5, "lora": {"rank": 8, "alpha": 16}},
    "output": {"uri": "s3://results/team/bot"},
}


def make_estimate(value: float, margin: float | None = None, samples: int = 540) -> Estimate:
    if margin is None:
        return Estimate(value=value, samples=samples)
    return Estimate(value=value, low=value - margin, high=value + margin, samples=samples)


def make_measure(name: str, base: float, tuned: float, margin: float, higher_is_better: bool = True) -> Measure:
    return Measure(
        name=name,
        higher_is_better=higher_is_better,
        base=make_estimate(base, margin),
        tuned=make_estimate(tuned, margin),
        change=make_estimate(tuned - base, margin),
    )


def make_manifest(**changes: Any) -> AdapterManifest:
    config = TrainerConfig.model_validate(CONFIG)
    fields: dict[str, Any] = {
        "created_at": "2026-03-04T05:06:07Z",
        "job": "support/parcel-bot",
        "config_digest": config.digest(),
        "config": config.to_json(),
        "model": ModelRecord(
            uri="hf://org/base-1b",
            revision=COMMIT,
            files=[InputRecord(uri="hf://org/base-1b/model.safetensors", etag="", size=10**9, sha256="a" * 64)],
        ),
        "inputs": [InputRecord(uri="s3://data/support/a.jsonl", etag='"e1"', size=5_000_000, sha256="b" * 64)],
        "backend": "transformers",
        "dataset": DATASET_REPORT,
        "metrics": {"steps": 900.0, "trainLoss": 1.1, "finalLoss": 0.7, "trainSeconds": 5400.0, "tokens": 7e6},
        "versions": {"finetune-operator": "0.1.0", "torch": "2.14.1", "peft": "0.21.2"},
        "files": [FileRecord(path="adapter_model.safetensors", size=10, sha256="c" * 64)],
    }
    return AdapterManifest.model_validate(fields | changes)


def make_sample(prompt: str, base: str, tuned: str, reference: str | None = None) -> Sample:
    """Return the sample of a validation row, or of a sample prompt if it has no reference answer."""
    return Sample(
        kind="prompt" if reference is None else "row",
        turns=[SampleTurn(role="user", text=prompt)],
        reference=reference,
        base=GeneratedAnswer(text=base),
        tuned=GeneratedAnswer(text=tuned),
    )


def make_minimal_evaluation() -> EvaluationReport:
    """Return the evaluation of a run without validation rows, GPU and prompts."""
    return EvaluationReport(overfitting=OverfittingResult(verdict="unknown", message="No validation rows."))


def make_full_evaluation() -> EvaluationReport:
    """Return an evaluation with all results."""
    return EvaluationReport(
        task="classification",
        measures=[
            make_measure("evalLoss", 2.31, 1.42, 0.05, higher_is_better=False),
            make_measure("perplexity", 10.07, 4.14, 0.3, higher_is_better=False),
            make_measure("accuracy", 0.61, 0.83, 0.04),
            make_measure("macroF1", 0.55, 0.57, 0.05),
            make_measure("bleu", 31.2, 24.6, 2.1),
        ],
        confusion=ConfusionMatrix(
            labels=["billing", "delivery", "other"],
            counts=[[150, 12, 8, 3], [9, 171, 5, 0], [14, 20, 148, 0]],
            base_counts=[[90, 50, 30, 3], [60, 101, 20, 4], [44, 60, 70, 8]],
        ),
        samples=[
            make_sample(
                "Where is my parcel? Order 4711.",
                "I am a language model and cannot track parcels. " * 5,
                "Your parcel is on its way; it left our warehouse this morning and arrives tomorrow.",
                reference="Your parcel left our warehouse today.",
            ),
            make_sample("Cancel my subscription.", "Sure!\n\n1. Go to settings\n2. Click", "It is cancelled."),
        ],
        rows=[RowScores(row="sha256:" + "e" * 64, scores={})],
        training_losses=[LossPoint(step=step, loss=_training_loss(step)) for step in range(1, 901)],
        validation_losses=[LossPoint(step=step, loss=_validation_loss(step)) for step in range(100, 901, 100)],
        overfitting=OverfittingResult(
            verdict="overfitting",
            message="The validation loss rose from step 500 on while the training loss fell: train for fewer steps.",
            gap=0.62,
            best_step=500,
            opened_at=600,
        ),
        forgetting=judge_forgetting(make_measure("generalPerplexity", 18.2, 18.4, 0.5, higher_is_better=False)),
        bias=_make_bias(),
        cross_validation=CrossValidationResult(metric="evalLoss", folds=[1.4, 1.5, 1.45], mean=1.45, deviation=0.05),
        gate=[
            GateCheck(metric="evalLoss", rule="evalLoss at most 1.5", value=1.42, passed=True),
            GateCheck(metric="bleu", rule="bleu at least 30", value=24.6, passed=False),
        ],
        examples=[
            RejectedRow(reason="overlength", where="s3://data/support/a.jsonl:17", text="Dear support team, " * 60),
            RejectedRow(reason="invalid", where="s3://data/support/a.jsonl:99", text='{"prompt": "no end'),
        ],
        lengths=[
            LengthBin(start=start, end=start + 64, rows=int(2400 * math.exp(-(((start - 200) / 160) ** 2))))
            for start in range(0, 1024, 64)
        ],
        energy=EnergyUse(watt_hours=1530.0, message="by the counters of 2 GPUs (NVML)"),
        preflight=[
            PreflightFinding(check="loss", status="passed", message="the trainer's loss is 2.31, the model's 2.31"),
            PreflightFinding(
                check="answers",
                status="warning",
                message='3 of 10,423 rows: the chat template removes words, such as "<think>" in s3://data/a.jsonl:4',
                value=3,
            ),
        ],
        missing=["rougeL: the task is classification"],
    )


def _make_bias() -> BiasResult:
    def make_finding(category: str, change: float, flagged: bool) -> BiasFinding:
        return BiasFinding(
            kind="swap",
            category=category,
            base=make_estimate(0.11, 0.02),
            tuned=make_estimate(0.11 + change, 0.02),
            change=make_estimate(change, 0.03),
            flagged=flagged,
            message=f"Answers differ by {change:g} more when terms of {category} are exchanged.",
        )

    return BiasResult(
        findings=[make_finding("gender", 0.09, True), make_finding("age", 0.01, False)],
        representation={"gender": {"female": 210, "male": 930}},
        notes=["religion: 4 rows are too few"],
    )


def _training_loss(step: int) -> float:
    return 0.55 + 1.9 * math.exp(-step / 220) + 0.13 * math.sin(step * 12.9898) * math.cos(step * 7.233)


def _validation_loss(step: int) -> float:
    return 1.3 + 1.1 * math.exp(-step / 150) + max(0, step - 500) ** 2 / 600_000
