"""Reports before the first step which share of the base model is quantized."""

from __future__ import annotations

from finetune_trainer.modeling.quantization import measure_quantization
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.state import TrainerInputs


def check_quantization_coverage(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Return the share of the weights that are quantized, or nothing without quantization.

    A share below `model.minQuantizedFraction` ended the run when the model was loaded.
    """
    model = inputs.config.model
    if model.quantization == "none":
        return []
    coverage = measure_quantization(inputs.config, inputs.loaded.model.get_base_model())
    remainder = f"; not quantized: {coverage.describe_unquantized()}" if coverage.unquantized else ""
    return [
        PreflightFinding(
            check="quantization",
            status="warning" if coverage.unquantized else "passed",
            message=f"{model.quantization} covers {coverage.fraction:.1%} of the weights of linear layers and experts"
            f"{remainder}",
            value=coverage.fraction,
            expected=model.min_quantized_fraction,
        )
    ]
