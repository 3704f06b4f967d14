"""Training that ends when the validation loss does not fall any more, and the adapter that is taken then."""

from __future__ import annotations

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_early_stopping_ends_without_improvement(run: RunTraining, backend: str) -> None:
    stopping = {"patience": 2, "minDelta": 1000}
    trained = run(validate=True, maxSteps=8, evalSteps=1, earlyStopping=stopping, backend=backend)
    assert trained.metrics["steps"] == 3
    assert len(trained.losses) == 3


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_early_stopping_publishes_best_adapter(run: RunTraining, backend: str) -> None:
    wild = {"learningRate": 0.1, "warmupRatio": 0, "scheduler": "constant", "evalSteps": 1, "maxSteps": 3}
    last = run(validate=True, **wild, backend=backend)
    best = run(validate=True, **wild, earlyStopping={"patience": 100}, backend=backend, evaluation={})
    step = int(best.metrics["bestStep"])
    assert last.metrics["bestStep"] == step < 3, "the data has to be learned badly at the end for this test"
    assert best.metrics["evalLoss"] < last.metrics["evalLoss"]
    assert best.evaluation
    message = best.evaluation.overfitting.message
    assert message.startswith(f"The adapter of step {step} is published, because it has the lowest validation loss, ")
    assert "at the end" not in message
    until = run(validate=True, **wild | {"maxSteps": step}, backend=backend)
    assert all((weight == until.weights[name]).all() for name, weight in best.weights.items())
    # Another run that starts from the published adapter measures the same loss.
    again = run(validate=True, maxSteps=1, adapter=str(best.folder / "adapter"))
    assert again.metrics["baseEvalLoss"] == pytest.approx(best.metrics["evalLoss"], abs=1e-3)
