"""Chooses the backend of a run, `unsloth` or `transformers`, and imports its libraries, inside functions."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.contract import SCRATCH_ENV, Reason, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import model_files
from finetune_trainer.modeling import kernels, support_matrix
from finetune_trainer.modeling.import_guard import (
    hide_optional_packages,
    list_distributions_once,
    pause_garbage_collector,
)

log = logging.getLogger(__name__)

_UNSLOTH_METHODS = ("sft",)
"""Methods for which Unsloth's kernels were compared with transformers on a GPU, so that `auto` may choose them."""


def choose_backend(
    config: TrainerConfig, read_settings: Callable[[], Mapping[str, Any]] = dict, world_size: int | None = None
) -> str:
    """Return `unsloth` or `transformers`, and log the reason.

    `read_settings` returns the base model's config.json, which is checked before Unsloth is chosen. `world_size` is
    the number of ranks, by default that of this run. Raises `CONFIG_INVALID` if Unsloth is requested but not usable.
    """
    _set_library_environment()
    world_size = world_size or topology.world_size()
    requested = config.training.backend
    kernels.check_family(config, read_settings)
    if requested == "unsloth":
        _check_unsloth_installed()
        check_unsloth(config, read_settings, world_size)
    backend, reason = (
        _choose_automatically(config, read_settings, world_size) if requested == "auto" else (requested, "requested")
    )
    log.info("backend %s: %s", backend, reason)
    return backend


def check_unsloth(config: TrainerConfig, read_settings: Callable[[], Mapping[str, Any]], world_size: int) -> None:
    """Raise `CONFIG_INVALID` if `training.backend` is unsloth, but it cannot train this config or base model. Unsloth
    need not be installed. The arguments are those of `choose_backend`."""
    if config.training.backend != "unsloth":
        return
    _check_unsloth_settings(config, world_size)
    _check_unsloth_model(read_settings())


def _check_unsloth_installed() -> None:
    if not _is_unsloth_installed():
        message = "training.backend is unsloth, which is not installed; use an image that includes it, or auto"
        raise TrainerError(Reason.CONFIG_INVALID, message)


def _check_unsloth_settings(config: TrainerConfig, world_size: int) -> None:
    problem = None
    if world_size > 1:
        problem = "unsloth supports a single process only; use transformers or auto, or one GPU on one node"
    elif _trains_parameters_or_tokens(config):
        problem = (
            "unsloth supports neither training.lora.targetParameters nor trainableTokens; use transformers or auto"
        )
    if problem:
        raise TrainerError(Reason.CONFIG_INVALID, f"training.backend {problem}")


def _check_unsloth_model(settings: Mapping[str, Any]) -> None:
    obstacle = _find_model_obstacle(settings)
    if obstacle:
        message = f"training.backend is unsloth, but the base model is {obstacle}; use transformers or auto"
        raise TrainerError(Reason.CONFIG_INVALID, message)


def _choose_automatically(
    config: TrainerConfig, read_settings: Callable[[], Mapping[str, Any]], world_size: int
) -> tuple[str, str]:
    """Return the backend for `auto`, and the reason."""
    reason = _find_reason_for_transformers(config, world_size)
    if reason:
        return "transformers", reason
    obstacle = _find_model_obstacle(read_settings())
    if obstacle:
        return "transformers", f"auto uses it because the base model is {obstacle}"
    return "unsloth", "there is a GPU"


def _find_reason_for_transformers(config: TrainerConfig, world_size: int) -> str | None:
    """Return why `auto` uses transformers for any base model, or None."""
    import torch

    training = config.training
    # The first reason that applies is logged. Rows that share sequences were not trained with Unsloth on a GPU yet.
    reasons = (
        (world_size > 1, f"there are {world_size} ranks"),
        (topology.is_sharded(), "auto uses it for compute.sharding full"),
        (training.effective_batching in ("packed", "paddingFree"), "auto uses it for rows that share sequences"),
        (training.kernels == "liger", "auto uses it for training.kernels liger"),
        (training.method not in _UNSLOTH_METHODS, f"auto uses it for method {training.method}"),
        (config.model.quantization == "int8", "auto uses it for int8"),
        (_trains_parameters_or_tokens(config), "auto uses it for targetParameters and trainableTokens"),
        (not torch.cuda.is_available(), "there is no GPU"),
        (not _is_unsloth_installed(), "unsloth is not installed"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _is_unsloth_installed() -> bool:
    return importlib.util.find_spec("unsloth") is not None


def _trains_parameters_or_tokens(config: TrainerConfig) -> bool:
    return bool(config.training.lora.target_parameters or config.training.lora.trainable_tokens)


def _find_model_obstacle(settings: Mapping[str, Any]) -> str | None:
    """Return why Unsloth cannot train a model with this config.json, as a description of the model, or None."""
    family = str(settings.get("model_type"))
    is_refused = support_matrix.find_problem(family, "unsloth") is not None
    return model_files.find_unsloth_obstacle(settings) or (f"of the family {family}" if is_refused else None)


def import_backend(backend: str, quantization: str = "none") -> None:
    """Import the libraries in the required order. This takes seconds, so call it while data is being downloaded."""
    _set_library_environment()
    with pause_garbage_collector(), list_distributions_once(), hide_optional_packages(backend, quantization):
        _import_libraries(backend)


def _set_library_environment() -> None:
    """Set the variables that libraries read when they are imported, unless the environment already sets them."""
    # Waiting OpenMP threads spin by default. On shared cores or with a CPU quota, as in any pod without a GPU, they
    # take time from the threads that they wait for: training was two to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _import_libraries(backend: str) -> None:
    if backend == "unsloth":
        # By default it writes compiled code to the working directory, which is read-only in a pod, and requests a file
        # from the hub at each load for its statistics.
        scratch = os.environ.get(SCRATCH_ENV, tempfile.gettempdir())
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", os.path.join(scratch, "unsloth_compiled_cache"))
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        # It patches transformers, TRL and PEFT, so it must be imported before them.
        importlib.import_module("finetune_trainer.modeling.unsloth_backend")
    for name in ("torch", "datasets", "transformers", "peft", "trl", "trl.trainer.sft_trainer"):
        importlib.import_module(name)
    from peft.import_utils import is_bnb_4bit_available, is_torchao_available
    from transformers.utils import logging as transformers_logging

    for is_available in (is_bnb_4bit_available, is_torchao_available):
        is_available()  # they import the package and keep the result; otherwise this happens when adapters are created
    transformers_logging.disable_progress_bar()  # a bar would be hundreds of lines in the log of a pod
