"""Everything that touches TRL. Imports it, so import this module only after the backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.labels import IGNORED
from finetune_trainer.model import Loaded, resolve_precision
from finetune_trainer.train import Step, Watch, total_steps


@dataclass(frozen=True)
class Result:
    """What was trained: mean loss over all steps, tokens without padding, peak bytes of GPU memory if there is one."""

    mean_loss: float
    tokens: int
    supervised: int
    peak_memory: int | None


def run(config: TrainerConfig, loaded: Loaded, dataset: datasets.Dataset, watch: Watch, work_dir: Path) -> Result:
    """Train on rows of `input_ids` and `labels` as they are: nothing is dropped, cut or masked here."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = _CountingTrainer(
        model=loaded.model,
        args=arguments(config, loaded.backend, len(dataset), work_dir),
        train_dataset=dataset,
        processing_class=loaded.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporter(watch, trainer))
    mean_loss = float(trainer.train().training_loss)
    peak = torch.cuda.max_memory_reserved() if gpu else None
    return Result(mean_loss, trainer.tokens(), trainer.supervised(), peak)


def arguments(config: TrainerConfig, backend: str, rows: int, work_dir: Path) -> SFTConfig:
    """The run's settings in TRL's terms."""
    training, precision, gpu = config.training, resolve_precision(config), torch.cuda.is_available()
    steps = total_steps(training, rows)
    return SFTConfig(
        output_dir=str(work_dir / "trainer"),
        # The rows are ready: TRL would cut those that are longer than 1024 and drop some without a word.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        # Both compute the same loss without all logits at once; TRL's would bypass Unsloth's own.
        loss_type="nll" if backend == "unsloth" else "chunked_nll",
        num_train_epochs=training.epochs or 1.0,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if training.scheduler == "constant" else training.scheduler,
        # In steps, since a ratio is rounded up to all of a short run; the first of them trains at a rate of zero.
        warmup_steps=min(round(steps * training.warmup_ratio), steps - 1),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # its default shows a plausible loss in place of NaN
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _CountingTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is published without types
    """Counts what goes through it: TRL's own count knows nothing of labels."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._supervised = torch.zeros_like(self._tokens)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        # Sums stay on the device until somebody asks, so that counting does not make the GPU wait.
        self._tokens += inputs["attention_mask"].sum().to(self._tokens.device)
        self._supervised += (inputs["labels"] != IGNORED).sum().to(self._tokens.device)
        loss: torch.Tensor = super().training_step(model, inputs, *args)
        return loss

    def tokens(self) -> int:
        """Trained so far, without padding."""
        return int(self._tokens.item())

    def supervised(self) -> int:
        """Learnt so far."""
        return int(self._supervised.item())


class _Reporter(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Hands each step to the watch."""

    def __init__(self, watch: Watch, trainer: _CountingTrainer) -> None:
        self._watch = watch
        self._trainer = trainer

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        self._watch.begin(state.max_steps)

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, float], **___: Any
    ) -> None:
        if "loss" in logs:
            tokens = self._trainer.tokens()
            self._watch.step(Step(state.global_step, state.max_steps, state.epoch or 0.0, tokens, logs))
