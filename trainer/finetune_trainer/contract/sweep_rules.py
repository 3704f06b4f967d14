"""Rules of the spec of a FineTuneSweep. The API server checks them, and `finetune-trainer plan` does."""

from __future__ import annotations

from finetune_trainer.contract.evaluation import METRICS_BY_TASK
from finetune_trainer.contract.sweep import COMPARABLE_PARAMETERS, MAX_TRIALS, PARAMETER_PATHS
from finetune_trainer.contract.training import METRICS_BY_METHOD

_PARAMETERS = tuple(PARAMETER_PATHS)
_GRID_SIZE = " * ".join(
    f"(has(self.parameters.{name}) && has(self.parameters.{name}.values) ? self.parameters.{name}.values.size() : 1)"
    for name in _PARAMETERS
)
_HAS_RANGE = " || ".join(
    f"(has(self.parameters.{name}) && has(self.parameters.{name}.min))" for name in _PARAMETERS if name != "scheduler"
)
_IS_MEASURED_BY_METHOD = " || ".join(
    f"(self.template.spec.training.method == '{method}' && self.objective.metric in {[*metrics]})"
    for method, metrics in METRICS_BY_METHOD.items()
    if metrics
)
_IS_MEASURED_BY_TASK = " || ".join(
    f"(self.template.spec.evaluation.task == '{task}' && self.objective.metric in {[*metrics]})"
    for task, metrics in METRICS_BY_TASK.items()
)
_MEASURED_METRICS = "; ".join(
    f"{name} has {', '.join(metrics)}"
    for name, metrics in (*METRICS_BY_METHOD.items(), *METRICS_BY_TASK.items())
    if metrics
)
_VARIES_SCHEDULE = " || ".join(
    f"has(self.parameters.{name})" for name in _PARAMETERS if name not in COMPARABLE_PARAMETERS
)
SWEEP_RULES = (
    (
        f"(has(self.search.trials) ? self.search.trials : {_GRID_SIZE}) * self.seeds <= {MAX_TRIALS}",
        f"the sweep has more than {MAX_TRIALS} trials; use fewer values or seeds, or search.type random",
    ),
    (
        f"self.search.type == 'random' || !({_HAS_RANGE})",
        "min and max need search.type random; set values for a grid",
    ),
    (
        "has(self.template.spec.dataset.validation) || (self.objective.metric == 'crossValidationLoss' "
        "&& has(self.template.spec.training.crossValidation))",
        "trials are compared on template.spec.dataset.validation, or by crossValidationLoss with "
        "template.spec.training.crossValidation",
    ),
    (
        f"({_IS_MEASURED_BY_METHOD}) || (has(self.template.spec.evaluation.task) && ({_IS_MEASURED_BY_TASK})) "
        "|| self.template.spec.evaluation.graders.exists(grader, grader.name == self.objective.metric) "
        "|| (self.objective.metric == 'crossValidationLoss' "
        "&& has(self.template.spec.training.crossValidation))",
        "the trials do not measure objective.metric with this template.spec.training.method and "
        f"template.spec.evaluation.task: {_MEASURED_METRICS}; template.spec.evaluation.graders have their names; "
        "training.crossValidation has crossValidationLoss",
    ),
    (
        "!has(self.parameters.beta) || !self.objective.metric.endsWith('Loss')",
        "parameters.beta changes the scale of the loss, so that trials cannot be ranked by it; set "
        "objective.metric to evalRewardAccuracy, to a metric of template.spec.evaluation.task or to a grader",
    ),
    (
        "!has(self.parameters.beta) || !(self.template.spec.training.method in ['grpo', 'rloo'])",
        "parameters.beta has no effect on methods grpo and rloo, which have template.spec.training.rollout.beta",
    ),
    (
        f"!has(self.halving) || !({_VARIES_SCHEDULE})",
        "halving compares losses at equal steps, which needs parameters that change neither the rows of a "
        f"step nor the schedule: {', '.join(COMPARABLE_PARAMETERS)}",
    ),
    (
        "!has(self.halving) || (self.objective.metric == 'evalLoss' "
        "&& !has(self.template.spec.training.crossValidation))",
        "halving needs the objective evalLoss, and no template.spec.training.crossValidation",
    ),
    (
        "!has(self.halving) || self.halving.atSteps.all(i, self.halving.atSteps.exists_one(j, i == j))",
        "halving.atSteps must be different steps",
    ),
    (
        "(has(self.parameters.epochs) ? has(self.template.spec.training.epochs) : true) "
        "&& (has(self.parameters.maxSteps) ? has(self.template.spec.training.maxSteps) : true)",
        "parameters.epochs needs template.spec.training.epochs, and parameters.maxSteps needs "
        "template.spec.training.maxSteps",
    ),
    (
        "!has(self.parameters.gradientAccumulation) || !has(self.template.spec.training.globalBatchSize)",
        "parameters.gradientAccumulation has no effect with template.spec.training.globalBatchSize; remove one of them",
    ),
    (
        "!has(self.parameters.warmupRatio) || !has(self.template.spec.training.warmupSteps)",
        "parameters.warmupRatio has no effect with template.spec.training.warmupSteps; remove one of them",
    ),
)
"""CEL rules that span several fields of the spec, with their messages."""
UNIQUE_OUTPUT_RULE = (
    "self.spec.output.uri.contains('{name}')",
    "template.spec.output.uri must contain {name}, the name of the FineTuneJob, so that no result replaces another",
)
"""CEL rule of a template of FineTuneJobs, with its message."""
