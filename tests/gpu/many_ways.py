"""`many_ways.py BACKEND FOLDER`: the tiny model trained on the GPU in all ways that are used; FOLDER gets results.json.

Each way trains, evaluates, and exports an adapter that is loaded anew and compared with the one in memory, as a run
does. One process for all, since the imports take longer than the trainings.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.trainer import tiny_model
from tests.trainer.training.trainings import Asked, train

from finetune_trainer.errors import TrainerError

REVIEWS = [
    {"prompt": f"The {word} is {'fine' if good else 'poor'}.", "completion": "good" if good else "bad"}
    for word in ("lamp", "river", "stone", "bread", "winter", "bridge", "letter", "garden", "window", "market")
    for good in (True, False)
]
LEARN = {"maxSteps": 60, "batchSize": 8, "gradientAccumulation": 1}
CLASSIFY = {"task": "classification", "maxNewTokens": 8, "samplePrompts": ["The lamp is fine."], "bias": {}}
BOTH: dict[str, Asked] = {
    "bf16": Asked({**LEARN, "precision": "bf16"}, {}, REVIEWS, validate=True, evaluation=CLASSIFY),
    "fp32": Asked({**LEARN, "precision": "fp32"}, {}, REVIEWS),
    "nf4": Asked(LEARN, {"quantization": "nf4"}, REVIEWS, validate=True, evaluation=CLASSIFY),
    "int8": Asked(LEARN, {"quantization": "int8"}, REVIEWS, validate=True, evaluation=CLASSIFY),
    "rslora": Asked({**LEARN, "lora": {"variant": "rslora"}}, {}, REVIEWS),
    "dora": Asked({**LEARN, "lora": {"variant": "dora"}}, {}, REVIEWS),
    "dora of nf4": Asked({**LEARN, "lora": {"variant": "dora"}}, {"quantization": "nf4"}, REVIEWS),
    "dropout": Asked({**LEARN, "lora": {"dropout": 0.1}}, {}, REVIEWS),
    "all activations kept": Asked({**LEARN, "gradientCheckpointing": False}, {}, REVIEWS),
    "dpo": Asked({"method": "dpo", **LEARN}, {}),
    "kto": Asked({"method": "kto", **LEARN}, {}),
}
TRANSFORMERS = {
    "packing": Asked({**LEARN, "maxSteps": 120, "packing": True, "batchSize": 1}, {}, REVIEWS),
    "fp16": Asked({**LEARN, "precision": "fp16"}, {}, REVIEWS),
}
WAYS: Mapping[str, Mapping[str, Asked]] = {"transformers": {**BOTH, **TRANSFORMERS}, "unsloth": BOTH}

LIBRARY_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a library raises is a result here."""


def tried(asked: Asked, model_dir: Path, folder: Path) -> dict[str, Any]:
    """What came of it, in plain values."""
    folder.mkdir()
    try:
        made = train(asked, model_dir, folder)
    except TrainerError as error:
        return {"error": f"{error.reason}: {error}"}
    except LIBRARY_ERRORS as error:
        return {"error": f"{type(error).__name__}: {error}"}
    found = made.evaluation
    accuracy = [each.tuned.value for each in found.measures if each.name == "accuracy"] if found else []
    return {"losses": made.losses, "accuracy": accuracy, "missing": found.missing if found else []}


def _brief(found: Mapping[str, Any]) -> str:
    losses = found.get("losses", [])
    return json.dumps({**found, "losses": [*losses[:1], *losses[-1:]]})


def resumed(backend: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    """Losses of a run that went on from step 4, and of one that was not interrupted."""
    shape = {**LEARN, "backend": backend, "maxSteps": 8, "lora": {"dropout": 0.1}}
    whole, rest = folder / "whole", folder / "rest"
    for each in (whole, rest):
        each.mkdir(parents=True)
    before = train(Asked(shape, {}, REVIEWS, save_at=4), model_dir, whole)
    after = train(Asked(shape, {}, REVIEWS, resume=str(whole / "trainer" / "checkpoint-4")), model_dir, rest)
    return {"uninterrupted": before.losses[4:], "resumed": after.losses[-4:]}


def starved(backend: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    """What is said where the GPU has too little memory."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    shape = {**LEARN, "backend": backend, "batchSize": 64, "maxSteps": 2}
    found = tried(Asked(shape, {"max_length": 512}, [{**REVIEWS[0], "prompt": "lamp " * 200}] * 64), model_dir, folder)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def main(backend: str, folder: Path) -> None:
    """See the module."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # hidden by tiny_model, whose other users stay on the CPU
    from finetune_trainer.modeling import loading

    loading.import_backend(backend, "nf4")
    import torch

    model_dir = tiny_model.build(folder / "model")
    results: dict[str, Any] = {}
    for name, asked in WAYS[backend].items():
        own = Asked(**{**vars(asked), "training": {**asked.training, "backend": backend}})
        results[name] = tried(own, model_dir, folder / name.replace(" ", "-"))
        print(name, _brief(results[name]), flush=True)
    results["resumed"] = resumed(backend, model_dir, folder / "resumed")
    results["starved"] = starved(backend, model_dir, folder / "starved") if torch.cuda.is_available() else {}
    for name in ("resumed", "starved"):
        print(name, json.dumps(results[name])[:400], flush=True)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
