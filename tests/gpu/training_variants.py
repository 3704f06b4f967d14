"""Train the tiny model on the GPU in all supported variants: `training_variants.py BACKEND FOLDER`.

Each variant trains, evaluates, and exports an adapter that is loaded again and compared with the one in memory, as in a
run. All variants run in one process, because the imports take longer than the trainings. FOLDER/results.json contains
the results.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.trainer import tiny_model
from tests.support.trainer.tiny_training import TrainingRequest, train

from finetune_trainer.errors import TrainerError

REVIEWS = [
    {"prompt": f"The {word} is {'fine' if good else 'poor'}.", "completion": "good" if good else "bad"}
    for word in ("lamp", "river", "stone", "bread", "winter", "bridge", "letter", "garden", "window", "market")
    for good in (True, False)
]
BASE_TRAINING = {"maxSteps": 60, "batchSize": 8, "gradientAccumulation": 1}
CLASSIFICATION = {"task": "classification", "maxNewTokens": 8, "samplePrompts": ["The lamp is fine."], "bias": {}}
BOTH_BACKENDS: dict[str, TrainingRequest] = {
    "bf16": TrainingRequest(
        {**BASE_TRAINING, "precision": "bf16"}, {}, REVIEWS, validate=True, evaluation=CLASSIFICATION
    ),
    "fp32": TrainingRequest({**BASE_TRAINING, "precision": "fp32"}, {}, REVIEWS),
    "nf4": TrainingRequest(BASE_TRAINING, {"quantization": "nf4"}, REVIEWS, validate=True, evaluation=CLASSIFICATION),
    "int8": TrainingRequest(BASE_TRAINING, {"quantization": "int8"}, REVIEWS, validate=True, evaluation=CLASSIFICATION),
    "rslora": TrainingRequest({**BASE_TRAINING, "lora": {"variant": "rslora"}}, {}, REVIEWS),
    "dora": TrainingRequest({**BASE_TRAINING, "lora": {"variant": "dora"}}, {}, REVIEWS),
    "dora of nf4": TrainingRequest({**BASE_TRAINING, "lora": {"variant": "dora"}}, {"quantization": "nf4"}, REVIEWS),
    "dropout": TrainingRequest({**BASE_TRAINING, "lora": {"dropout": 0.1}}, {}, REVIEWS),
    "all activations kept": TrainingRequest({**BASE_TRAINING, "gradientCheckpointing": False}, {}, REVIEWS),
    "dpo": TrainingRequest({"method": "dpo", **BASE_TRAINING}, {}),
    "kto": TrainingRequest({"method": "kto", **BASE_TRAINING}, {}),
    "packing": TrainingRequest({**BASE_TRAINING, "maxSteps": 120, "packing": True, "batchSize": 1}, {}, REVIEWS),
    "paddingFree": TrainingRequest({**BASE_TRAINING, "batching": "paddingFree"}, {}, REVIEWS),
}
TRANSFORMERS_ONLY = {
    "liger": TrainingRequest({**BASE_TRAINING, "kernels": "liger"}, {}, REVIEWS, validate=True),
    "liger, packed": TrainingRequest(
        {**BASE_TRAINING, "maxSteps": 120, "packing": True, "batchSize": 1, "kernels": "liger"}, {}, REVIEWS
    ),
    "liger of dpo": TrainingRequest({"method": "dpo", **BASE_TRAINING, "kernels": "liger"}, {}),
    "8 bits": TrainingRequest({**BASE_TRAINING, "optimizer": "adamw8bit"}, {}, REVIEWS),
    "8 bits, paged": TrainingRequest({**BASE_TRAINING, "optimizer": "pagedAdamw8bit"}, {}, REVIEWS),
    "fp16": TrainingRequest({**BASE_TRAINING, "precision": "fp16"}, {}, REVIEWS),
}
VARIANTS: Mapping[str, Mapping[str, TrainingRequest]] = {
    "transformers": {**BOTH_BACKENDS, **TRANSFORMERS_ONLY},
    "unsloth": BOTH_BACKENDS,
}

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
"""Errors of libraries, which are recorded as a result."""


def try_training(request: TrainingRequest, model_dir: Path, folder: Path) -> dict[str, Any]:
    """Train one variant. Return its losses and metrics, or its error, as JSON values."""
    folder.mkdir()
    try:
        trained = train(request, model_dir, folder)
    except TrainerError as error:
        return {"error": f"{error.reason}: {error}"}
    except LIBRARY_ERRORS as error:
        return {"error": f"{type(error).__name__}: {error}"}
    evaluation = trained.evaluation
    accuracy = (
        [measure.tuned.value for measure in evaluation.measures if measure.name == "accuracy"] if evaluation else []
    )
    return {"losses": trained.losses, "accuracy": accuracy, "missing": evaluation.missing if evaluation else []}


def _shorten_losses(result: Mapping[str, Any]) -> str:
    losses = result.get("losses", [])
    return json.dumps({**result, "losses": [*losses[:1], *losses[-1:]]})


def train_and_resume(backend: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    """Return the losses of a run that resumed from step 4, and of a run that was not interrupted."""
    shape = {**BASE_TRAINING, "backend": backend, "maxSteps": 8, "lora": {"dropout": 0.1}}
    uninterrupted_dir, resumed_dir = folder / "uninterrupted", folder / "resumed"
    for run_dir in (uninterrupted_dir, resumed_dir):
        run_dir.mkdir(parents=True)
    before = train(TrainingRequest(shape, {}, REVIEWS, save_at=4), model_dir, uninterrupted_dir)
    checkpoint = uninterrupted_dir / "trainer" / "checkpoint-4"
    after = train(TrainingRequest(shape, {}, REVIEWS, resume=str(checkpoint)), model_dir, resumed_dir)
    return {"uninterrupted": before.losses[4:], "resumed": after.losses[-4:]}


def train_without_memory(backend: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    """Train with too little GPU memory. Return the error."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    shape = {**BASE_TRAINING, "backend": backend, "batchSize": 64, "maxSteps": 2}
    result = try_training(
        TrainingRequest(shape, {"max_length": 512}, [{**REVIEWS[0], "prompt": "lamp " * 200}] * 64), model_dir, folder
    )
    torch.cuda.set_per_process_memory_fraction(1.0)
    return result


def main(backend: str, folder: Path) -> None:
    """Train all variants with one backend, and write results.json."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # tiny_model hides the GPU from tests
    from finetune_trainer.modeling import backends

    backends.import_backend(backend, "nf4")
    import torch

    model_dir = tiny_model.build(folder / "model")
    results: dict[str, Any] = {}
    for name, request in VARIANTS[backend].items():
        backend_request = TrainingRequest(**{**vars(request), "training": {**request.training, "backend": backend}})
        results[name] = try_training(backend_request, model_dir, folder / name.replace(" ", "-"))
        print(name, _shorten_losses(results[name]), flush=True)
    results["resumed"] = train_and_resume(backend, model_dir, folder / "resumed")
    results["starved"] = (
        train_without_memory(backend, model_dir, folder / "starved") if torch.cuda.is_available() else {}
    )
    for name in ("resumed", "starved"):
        print(name, json.dumps(results[name])[:400], flush=True)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
