"""Builds and runs TRL's trainers. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.preparation import PreparedData
from finetune_trainer.distributed import topology
from finetune_trainer.modeling.loading import Loaded
from finetune_trainer.modeling.positions import max_positions
from finetune_trainer.records.evaluation import Energy
from finetune_trainer.training import packing, trl_arguments
from finetune_trainer.training.checkpoint_callback import CheckpointCallback
from finetune_trainer.training.early_stopping import Look
from finetune_trainer.training.evaluation_callback import Lookout, Validation
from finetune_trainer.training.loss_preflight import LossCheck
from finetune_trainer.training.monitor import Step, Watch
from finetune_trainer.training.packing_preflight import PackingCheck
from finetune_trainer.training.padding_rows import filled
from finetune_trainer.training.train import Session
from finetune_trainer.training.trl_methods import Dpo, Kto, KtoCollator, Sft

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What was trained, by earlier attempts too: loss and learning rate of each step, tokens without padding, those
    learnt and seconds, and what was seen of the validation data; peak bytes of GPU memory of this attempt, if there is
    one."""

    losses: list[tuple[int, float]]
    learning_rates: list[tuple[int, float]]
    tokens: int
    supervised: int
    seconds: float
    looks: list[Look]
    peak_memory: int | None
    energy: Energy
    left_out_loss: float | None
    """Of rows that were left out to measure it, if there are any."""


@dataclass(frozen=True)
class Job:
    """What a trainer is built from."""

    config: TrainerConfig
    loaded: Loaded
    prepared: PreparedData
    work_dir: Path

    def collator(self) -> Callable[[Any], Any]:
        """For rows of the method, as they are prepared."""
        pad = self.loaded.tokenizer.pad_token_id
        if self.config.training.method == "kto":
            return KtoCollator(pad, max_positions(self.loaded.model.get_base_model().config))
        sft = self.config.training.method == "sft"
        collator: Callable[[Any], Any] = (DataCollatorForLanguageModeling if sft else DataCollatorForPreference)(pad)
        return collator


def run(job: Job, session: Session, watch: Watch) -> Result:
    """Train on the rows as they are: nothing is dropped, cut or masked here."""
    with _router_settings_kept(job.loaded.model):
        return _run(job, session, watch)


@contextmanager
def _router_settings_kept(model: PeftModel) -> Iterator[None]:
    """TRL switches the router's loss of a mixture of experts off in the model's config, which is published with a
    merged model."""
    values = vars(model.get_base_model().config.get_text_config())
    kept = {name: values[name] for name in ("output_router_logits", "router_aux_loss_coef") if name in values}
    try:
        yield
    finally:
        values.update(kept)


def _run(job: Job, session: Session, watch: Watch) -> Result:
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = build(job)
    if isinstance(trainer, Sft):
        _check(trainer, job, watch)
    trainer.counts.fold_losses = session.position.fold_losses
    lookout = _look_on(trainer, job, session, watch)
    if session.resume_from is None:
        trainer.train()
    else:
        _go_on(trainer, session.resume_from, lookout)
    counts = trainer.counts
    energy = counts.energy.taken()
    log.info("energy: %s", energy.message if energy.watt_hours is None else f"{energy.watt_hours:.1f} Wh")
    peak = torch.cuda.max_memory_reserved() if gpu else None
    losses, rates = _logged(trainer.state, "loss"), _logged(trainer.state, "learning_rate")
    left_out = job.prepared.left_out
    loss = None if left_out is None else Validation(trainer, left_out, job.collator(), watch.progress.alive).loss()
    return Result(losses, rates, counts.tokens, counts.supervised, counts.seconds, counts.looks, peak, energy, loss)


def _check(trainer: Sft, job: Job, watch: Watch) -> None:
    rows, alive = job.prepared.dataset, watch.progress.alive
    LossCheck(trainer, job.config, rows, job.collator(), alive).run()
    if job.config.training.packing:
        PackingCheck(trainer, job.config, rows, job.loaded.tokenizer.pad_token_id, alive).run()


def _logged(state: TrainerState, name: str) -> list[tuple[int, float]]:
    return [(int(each["step"]), float(each[name])) for each in state.log_history if name in each]


def _go_on(trainer: Sft | Dpo | Kto, checkpoint: Path, lookout: Lookout | None) -> None:
    """Train what is left. After the last step nothing is, where transformers would do one more."""
    trainer.counts.restore(checkpoint)
    if lookout:
        lookout.restore(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps and not (lookout and lookout.is_over):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    last = next(logs for logs in reversed(state.log_history) if "loss" in logs)
    others = trainer.callback_handler
    others.on_train_begin(trainer.args, state, trainer.control)
    others.on_log(trainer.args, state, trainer.control, last)
    others.on_train_end(trainer.args, state, trainer.control)


def build(job: Job) -> Sft | Dpo | Kto:
    """The method's trainer."""
    model = job.loaded.model
    # TRL rounds the adapter of a quantised model to bf16; it is small, and learns better in 32 bits.
    weights = {name: weight.data.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = _built(job, {"model": model, "processing_class": job.loaded.tokenizer})
    if "ref" in model.peft_config:
        # TRL copies the adapter to compare with. Without the copy it compares with the base model, as is documented.
        model.delete_adapter("ref")
        model.set_adapter("default")
    for name, weight in model.named_parameters():
        if name in weights:
            weight.data = weights[name]
    return trainer


def _built(job: Job, common: dict[str, Any]) -> Sft | Dpo | Kto:
    config, rows, collator = job.config, job.prepared.dataset, job.collator()
    method, folder = config.training.method, job.work_dir
    if method == "sft":
        rows, collator = _packed(job) if config.training.packing else (rows, collator)
        rows, fillers = _filled(job, rows)
        arguments = trl_arguments.sft(config, job.loaded.backend, len(rows), folder)
        trainer = Sft(**common, args=arguments, train_dataset=rows, data_collator=collator)
        trainer.fillers = fillers
        return trainer
    if config.training.lora.dropout:
        log.warning("%s compares likelihoods, so TRL turns dropout off: training.lora.dropout has no effect", method)
    if method == "dpo":
        arguments = trl_arguments.dpo(config, len(rows), folder)
        return Dpo(**common, args=arguments, train_dataset=rows, data_collator=collator)
    # Rows keep their order through all epochs, so they are mixed here; the permutation is all that is kept in memory.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.training.seed))
    arguments = trl_arguments.kto(config, len(rows), folder)
    return Kto(**common, args=arguments, train_dataset=rows.select(order.tolist()), data_collator=collator)


def _filled(job: Job, rows: datasets.Dataset) -> tuple[datasets.Dataset, int]:
    """One worker takes a smaller batch at the end."""
    if topology.size() == 1:
        return rows, 0
    return filled(rows, job.config.training.batch_size * topology.size(), job.loaded.tokenizer.pad_token_id)


def _packed(job: Job) -> tuple[datasets.Dataset, Callable[[Any], Any]]:
    rows = job.prepared.dataset
    sequences = packing.packed(rows, job.config.model.max_length)
    log.info("packing: %d rows in %d sequences, none cut, each sees itself alone", len(rows), len(sequences))
    return sequences, packing.Collator(rows, job.loaded.tokenizer.pad_token_id)


def _look_on(trainer: Sft | Dpo | Kto, job: Job, session: Session, watch: Watch) -> Lookout | None:
    """Add all who look on, and return the one who looks at the validation data, if there is any."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporter(watch, trainer))
    lookout = None
    if job.prepared.validation is not None:
        validation = Validation(trainer, job.prepared.validation, job.collator(), watch.progress.alive)
        lookout = Lookout(validation, watch, job.config.training)
        trainer.add_callback(lookout)
    for callback in session.callbacks:
        trainer.add_callback(callback)
    if session.saver:
        trainer.add_callback(CheckpointCallback(session.saver, session.position.before))
    return lookout


class _Reporter(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Hands each step to the watch."""

    def __init__(self, watch: Watch, trainer: Sft | Dpo | Kto) -> None:
        self._watch = watch
        self._trainer = trainer

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        self._watch.begin(state.max_steps, state.global_step, self._trainer.counts.tokens)

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, float], **___: Any
    ) -> None:
        if "loss" in logs:
            tokens = self._trainer.counts.tokens
            self._watch.step(Step(state.global_step, state.max_steps, state.epoch or 0.0, tokens, logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        self._trainer.counts.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
