"""Training section of `TrainerConfig`. Names follow TRL and PEFT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import Model, ModuleName, cel_rules
from finetune_trainer.contract.graders import GraderName

# Types of the fields that a FineTuneSweep can set.
LearningRate = Annotated[float, Field(gt=0, le=1)]
Scheduler = Literal["linear", "cosine", "constant", "warmupStableDecay"]
WarmupRatio = Annotated[float, Field(ge=0, lt=1)]
Epochs = Annotated[float, Field(gt=0, le=1000)]
MaxSteps = Annotated[int, Field(ge=1, le=10_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
GlobalBatchSize = Annotated[int, Field(ge=1, le=1_048_576)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
MaxGradNorm = Annotated[float, Field(gt=0, le=1000)]
Beta = Annotated[float, Field(gt=0, le=10)]
LoraRank = Annotated[int, Field(ge=1, le=1024)]
LoraAlpha = Annotated[float, Field(gt=0, le=65536)]
LoraDropout = Annotated[float, Field(ge=0, lt=1)]


class Lora(Model):
    """Lora configures the low-rank adapter. Names follow PEFT."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "self.targetModules.size() == 1 || !('all-linear' in self.targetModules)",
                "targetModules is either ['all-linear'] or a list of module names",
            )
        )
    )

    rank: LoraRank = 16
    """rank is the rank `r` of the update matrices. Defaults to 16."""
    alpha: LoraAlpha = 32
    """alpha is the scaling factor: updates are multiplied by alpha / rank. Defaults to 32."""
    dropout: LoraDropout = 0
    """dropout is the dropout probability on the input of the adapter. Higher values can reduce overfitting. Defaults to
    0."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """variant is the type of the adapter. `rslora` scales updates by alpha / sqrt(rank), which is more stable at high
    ranks. `dora` trains magnitude and direction separately, which is better at low ranks but slower. Defaults to
    lora."""
    target_modules: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """targetModules are the names of the modules that get an adapter, or `all-linear` for all linear layers of the
    language part except the output head and routers. Defaults to [all-linear]."""
    target_parameters: list[ModuleName] = Field(default=[], max_length=16)
    """targetParameters are the names of parameters that get an adapter although they belong to no linear layer, such as
    `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`, the fused experts of a mixture of experts. A name matches
    the end of a parameter's path in all layers. The variant `dora` and `dropout` are refused together with them. They
    need backend transformers or auto. Defaults to none."""
    trainable_tokens: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default=[], max_length=64
    )
    """trainableTokens are tokens whose embeddings and rows of the output head are trained as well, such as an
    `<|im_end|>` that the base model was never trained on. Each must be exactly one token of the vocabulary. They need
    backend transformers or auto. vLLM serves the result with `output.merged` only. Defaults to none."""


class Checkpoints(Model):
    """Checkpoints configures the checkpoints that the next attempt resumes from. They are stored below `output.uri` and
    deleted when the run succeeds."""

    every_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """everySteps is the number of optimizer steps between checkpoints. If unset, a checkpoint is saved every two
    minutes. One more is saved when the pod is terminated."""
    keep: int = Field(default=2, ge=1, le=10)
    """keep is the number of latest checkpoints to keep in S3. Defaults to 2."""


class EarlyStopping(Model):
    """EarlyStopping stops the training when the validation loss no longer improves, and publishes the adapter with the
    lowest loss."""

    patience: int = Field(default=3, ge=1, le=1000)
    """patience is the number of evaluations without improvement after which training stops. Defaults to 3."""
    min_delta: float = Field(default=0, ge=0, le=1000)
    """minDelta is the minimum decrease of the validation loss that counts as an improvement. Defaults to 0."""


class CrossValidation(Model):
    """CrossValidation configures k-fold cross-validation: for each fold, the model is trained on all other folds and
    its loss is measured on this one."""

    folds: int = Field(ge=2, le=10)
    """folds is the number of folds that the training rows are split into, by `training.seed`. Similar rows are in the
    same fold. The metrics `crossValidationLoss` and `crossValidationDeviation` of the result are the mean and the
    sample standard deviation of the losses of the folds; `evaluation.gate` can use the first one."""


class Rollout(Model):
    """Rollout configures the answers that `grpo` and `rloo` generate and learn from."""

    generations: int = Field(default=8, ge=2, le=64)
    """generations is the number of answers to each prompt, which are compared with each other. The answers of a step,
    `batchSize` x `gradientAccumulation` x the number of devices, must be a multiple of it. Defaults to 8."""
    max_new_tokens: int = Field(default=256, ge=1, le=8192)
    """maxNewTokens is the maximum length of an answer, in tokens. `model.maxLength` limits prompt and answer together.
    Defaults to 256."""
    temperature: float = Field(default=1, gt=0, le=2)
    """temperature is the sampling temperature. Higher values give more different answers. Defaults to 1."""
    beta: float | None = Field(default=None, ge=0, le=10)
    """beta is the weight of the divergence from the reference model, which `training.reference` chooses. Higher values
    keep the model closer to it; 0 uses no reference model, which is faster. If unset, it is 0 for `grpo` and 0.05 for
    `rloo`."""


class Reward(Model):
    """Reward is a grader whose scores `grpo` and `rloo` raise."""

    grader: GraderName
    """grader is the name of one of `evaluation.graders`."""
    weight: float = Field(default=1, gt=0, le=1000)
    """weight is the factor of its score in the reward, which is the sum over all rewards. Defaults to 1."""


POLICY_METHODS = ("grpo", "rloo")
"""Methods that generate answers and learn from their rewards."""
METRICS_BY_METHOD: dict[str, tuple[str, ...]] = {
    "sft": ("evalLoss", "perplexity"),
    "dpo": ("evalLoss", "evalRewardAccuracy"),
    "kto": ("evalLoss",),
    "grpo": (),
    "rloo": (),
}
"""The metrics that every run with validation data has, by `training.method`."""
_IS_POLICY_METHOD = "(self.method in ['grpo', 'rloo'])"


class Training(Model):
    """Training configures the training method and its hyperparameters."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.epochs) != has(self.maxSteps)", "exactly one of epochs and maxSteps must be set"),
            ("!self.packing || self.method == 'sft'", "packing applies to method sft only"),
            (
                "!self.packing || !has(self.batching) || self.batching == 'packed'",
                "batching replaces packing; set batching to packed and leave packing out",
            ),
            (
                "!has(self.batching) || self.method == 'sft' || self.batching == 'padded'"
                " || (self.batching == 'byLength' && self.method == 'dpo')",
                "batching paddingFree and packed apply to method sft only, and byLength to sft and dpo",
            ),
            (
                "!has(self.globalBatchSize) || self.gradientAccumulation == 4",
                "globalBatchSize replaces gradientAccumulation, so set one of them only",
            ),
            (
                "!has(self.globalBatchSize) || self.globalBatchSize % self.batchSize == 0",
                "globalBatchSize must be a multiple of batchSize",
            ),
            (
                "!has(self.globalBatchSize) || self.method != 'kto'",
                "globalBatchSize does not apply to method kto, which compares the rows of all devices' batches",
            ),
            (
                "!has(self.warmupSteps) || self.warmupRatio == 0.03",
                "warmupSteps replaces warmupRatio, so set one of them only",
            ),
            (
                "self.minLearningRateRatio == 0.0 || self.scheduler != 'constant'",
                "minLearningRateRatio does not apply to scheduler constant",
            ),
            (
                "self.kernels == 'standard' || self.backend != 'unsloth'",
                "kernels liger needs backend transformers or auto; backend unsloth has kernels of its own",
            ),
            ("self.loss == 'completion' || self.method == 'sft'", "loss all applies to method sft only"),
            (
                "self.method != 'kto' || self.batchSize > 1",
                "method kto needs a batchSize of at least 2, because it compares answers of a batch with each other",
            ),
            (
                f"{_IS_POLICY_METHOD} == (self.rewards.size() > 0)",
                "methods grpo and rloo need rewards, the names of evaluation.graders; other methods have none",
            ),
            (f"!has(self.rollout) || {_IS_POLICY_METHOD}", "rollout applies to methods grpo and rloo only"),
            ("!has(self.lossType) || self.method == 'grpo'", "lossType applies to method grpo only"),
            (
                f"!{_IS_POLICY_METHOD} || (!has(self.earlyStopping) && !has(self.crossValidation) "
                "&& !has(self.evalSteps) && !has(self.globalBatchSize))",
                "methods grpo and rloo have no loss on held-out rows and count answers, so earlyStopping, "
                "crossValidation, evalSteps and globalBatchSize do not apply",
            ),
            (
                f"!{_IS_POLICY_METHOD} || (self.backend != 'unsloth' && self.kernels == 'standard')",
                "methods grpo and rloo need backend transformers or auto, and kernels standard",
            ),
            (
                "self.rewards.all(each, self.rewards.exists_one(other, other.grader == each.grader))",
                "rewards must name different graders",
            ),
        )
    )

    method: Literal["sft", "dpo", "kto", "grpo", "rloo"] = "sft"
    """method is the training method. `sft`: supervised fine-tuning on answers. `dpo`: direct preference optimization on
    pairs of a chosen and a rejected answer. `kto`: Kahneman-Tversky optimization on answers that are each labeled as
    desirable or undesirable. `grpo`: group relative policy optimization on prompts: the model generates several answers
    to each and learns from their `rewards`. `rloo`: the same with the REINFORCE leave-one-out estimator. Defaults to
    sft."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """backend is the training library. `transformers`: transformers with PEFT. `unsloth`: Unsloth's optimized kernels,
    in a single process, without `lora.targetParameters` and `lora.trainableTokens`, and int8 only on a GPU; not for
    multimodal models, weights that are stored in fp8 or mxfp4, and families without Unsloth in the support matrix.
    `auto`: Unsloth if all of this allows it, the method is `sft`, rows are neither packed nor joined by `paddingFree`,
    the quantization is not int8, Unsloth is installed and there is a GPU; otherwise transformers. Both train the same
    tokens with the trainers of TRL. Defaults to auto."""
    epochs: Epochs | None = None
    """epochs is the number of passes over the training data. Exactly one of `epochs` and `maxSteps` must be set."""
    max_steps: MaxSteps | None = None
    """maxSteps is the number of optimizer steps. Exactly one of `epochs` and `maxSteps` must be set."""
    batch_size: BatchSize = 2
    """batchSize is the number of rows per device and forward pass. Defaults to 2."""
    gradient_accumulation: BatchSize = 4
    """gradientAccumulation is the number of forward passes per optimizer step. The loss is averaged over all their
    tokens. Defaults to 4."""
    global_batch_size: GlobalBatchSize | None = None
    """globalBatchSize is the number of rows, or of sequences of packed rows, per optimizer step on all devices
    together. It replaces `gradientAccumulation`, which results from it, from `batchSize` and from the number of
    devices. It must be a multiple of `batchSize` x the number of devices. The number of devices is then no part of the
    run: checkpoints of 4 GPUs can be resumed on 2. It needs method sft or dpo. If unset, it is `batchSize` x
    `gradientAccumulation` x the number of devices."""
    learning_rate: LearningRate = 2e-4
    """learningRate is the peak learning rate. Defaults to 0.0002."""
    scheduler: Scheduler = "linear"
    """scheduler is the shape of the learning rate after warmup. `linear` and `cosine` decrease to
    `minLearningRateRatio` at the last step, `constant` does not decrease, and `warmupStableDecay` is constant until the
    last fifth of all steps, in which it decreases linearly. Defaults to linear."""
    warmup_ratio: WarmupRatio = 0.03
    """warmupRatio is the fraction of all steps in which the learning rate increases from zero to its peak. Defaults to
    0.03."""
    warmup_steps: int | None = Field(default=None, ge=0, le=10_000_000)
    """warmupSteps is the number of steps in which the learning rate increases from zero to its peak. It replaces
    `warmupRatio`. If it is not less than the number of all steps, the learning rate increases until the last step."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0, lt=1)] = 0
    """minLearningRateRatio is the learning rate of the last step as a fraction of the peak. With 0, the rate reaches
    zero one step after the last. Defaults to 0."""
    optimizer: Literal["adamw", "adamw8bit", "pagedAdamw8bit"] = "adamw"
    """optimizer is the optimizer. `adamw`: AdamW with moments in 32 bits, in one fused kernel. `adamw8bit`: moments in
    8 bits, which saves 6 bytes per parameter of the adapter. `pagedAdamw8bit`: these moments move to
    host memory while GPU memory is short, which needs a GPU. Defaults to adamw."""
    weight_decay: WeightDecay = 0.01
    """weightDecay is the weight decay of AdamW. Higher values can reduce overfitting. Defaults to 0.01."""
    max_grad_norm: MaxGradNorm = 1
    """maxGradNorm is the norm that gradients are clipped to. Defaults to 1."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """precision is the number format of the base model and its activations. `auto` is bf16 on GPUs that support it,
    fp16 on other GPUs, and fp32 on a CPU. Defaults to auto."""
    gradient_checkpointing: bool = True
    """gradientCheckpointing recomputes activations in the backward pass. This saves memory and takes about a third more
    time. Defaults to true."""
    kernels: Literal["standard", "liger"] = "standard"
    """kernels are the implementations of norms, rotary positions, feed-forward layers and the loss with backend
    transformers. `standard`: those of transformers and TRL. `liger`: the fused Triton kernels of Liger, which need
    less memory and time, a GPU, and a model family that Liger supports. Defaults to standard."""
    batching: Literal["padded", "byLength", "paddingFree", "packed"] | None = None
    """batching sets how rows form batches. The loss per token does not depend on it. `padded`: rows in random order,
    padded to the longest row of their batch. `byLength`: rows of similar length are in the same batch, which reduces
    padding; the order of the batches is random. `paddingFree`: the rows of a batch form one sequence without padding
    and without attention between them. `packed`: as many rows as fit into `model.maxLength` tokens form one sequence
    without attention between them, and `batchSize` counts sequences. `paddingFree` and `packed` need method sft,
    `byLength` needs sft or dpo. If unset, it is `packed` if `packing` is true, or else `padded`."""
    packing: bool = False
    """packing combines several short rows into one sequence of up to `model.maxLength` tokens, without attention
    between them. This reduces padding and leaves the loss per token unchanged. It needs method sft. Defaults to
    false."""
    loss: Literal["completion", "all"] = "completion"
    """loss sets which tokens are trained on. `completion` trains on the tokens of the assistant or of the completion
    only, `all` trains on all tokens. Rows of format `text` are always trained on all tokens. Defaults to completion."""
    beta: Beta = 0.1
    """beta sets for `dpo` and `kto` how close the fine-tuned model stays to the reference model. Higher values keep it
    closer. Defaults to 0.1."""
    reference: Literal["initial", "base"] = "initial"
    """reference is the model that `dpo`, `kto` and, with `rollout.beta`, `grpo` and `rloo` stay close to. `initial`:
    the model that the training starts from, which includes the adapter at `model.adapterURI`, if it is set. `base`: the
    base model without an adapter. It has no effect with `sft`. Defaults to initial."""
    loss_type: Literal["dapo", "grpo", "drGrpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] | None = None
    """lossType is the loss of `grpo`, as in TRL. `dapo` averages over the tokens of all answers of a step, `grpo` over
    the answers, which prefers short right and long wrong answers, `drGrpo` divides by a constant, and `bnpo` averages
    over the tokens of a batch. `cispo`, `sapo`, `luspo` and `vespo` clip or weight the ratio of the policies
    differently. If unset, `dapo` is used."""
    rollout: Rollout | None = None
    """rollout configures the answers that `grpo` and `rloo` generate. If unset, its defaults are used."""
    rewards: list[Reward] = Field(default=[], max_length=8)
    """rewards are the graders whose scores `grpo` and `rloo` raise, with their weights. An answer that no grader can
    score teaches nothing. Required for `grpo` and `rloo`, and refused for other methods. Defaults to none."""
    eval_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """evalSteps is the number of optimizer steps between evaluations on the validation data. If unset, the model is
    evaluated at the end of each epoch."""
    early_stopping: EarlyStopping | None = None
    """earlyStopping stops the training when the validation loss no longer improves, and publishes the adapter with the
    lowest loss. It needs `dataset.validation`. If unset, all steps are trained and the last adapter is published."""
    cross_validation: CrossValidation | None = None
    """crossValidation trains one more model for each fold, on all rows except those of the fold, and measures its loss
    on the fold. This shows how well the training generalizes to unseen rows and how much that depends on the choice of
    rows. The published adapter is trained on all rows and does not change. The run takes `folds` + 1 trainings. If
    unset, there is no cross-validation."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """seed is the random seed of the adapter's initialization, the order of rows, dropout and the folds. Defaults to
    42."""
    lora: Lora = Lora()
    """lora configures the low-rank adapter."""
    checkpoints: Checkpoints = Checkpoints()
    """checkpoints configures the checkpoints that the next attempt resumes from."""
    stall_seconds: int = Field(default=1800, ge=10, le=86400)
    """stallSeconds is the number of seconds without progress, in a training step or in a stage before or after
    training, after which the attempt is aborted and retried. The thread stacks are written to the log. Defaults to
    1800."""

    @property
    def is_policy_method(self) -> bool:
        """Whether the method generates answers and learns from their rewards."""
        return self.method in POLICY_METHODS

    @property
    def effective_rollout(self) -> Rollout:
        """`rollout`, or its defaults."""
        return self.rollout or Rollout()

    @property
    def effective_batching(self) -> Literal["padded", "byLength", "paddingFree", "packed"]:
        """`batching`, or what `packing` means if it is unset."""
        return self.batching or ("packed" if self.packing else "padded")

    def replace_batching(self) -> Training:
        """Return a copy with `packing` in place of the values of `batching` that mean the same, for the digest."""
        if self.batching not in ("padded", "packed"):
            return self
        return self.model_copy(update={"batching": None, "packing": self.batching == "packed"})
