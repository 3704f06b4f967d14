"""Writes the sample manifests in `manifests/serving/`: `python -m tests.serving.samples`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune_trainer.reporting.serving_manifests import ServedAdapter, render_kserve, render_vllm

FOLDER = Path(__file__).parents[2] / "manifests" / "serving"
RESULT = ServedAdapter(
    name="support-bot",
    source="s3://adapters/support-bot/",
    base_model="Qwen/Qwen3-8B",
    rank=16,
    endpoint="https://s3.example",
)
CHAMPION = replace(RESULT, source="s3://adapters/bot/champion.json")


def render_samples() -> dict[str, str]:
    """Return the content of each sample by its name."""
    return {
        "vllm.yaml": render_vllm(RESULT),
        "vllm-champion.yaml": render_vllm(CHAMPION),
        "kserve.yaml": render_kserve(RESULT),
    }


if __name__ == "__main__":
    for name, text in render_samples().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
