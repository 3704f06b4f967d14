"""Measures with which families Unsloth works. It patches its process, so each training runs in a fork of a server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.matrix.measurement import shorten
from tests.support.trainer.fork_server import ForkServer, start_fork_server
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import config
from tests.support.trainer.tiny_training import TrainingRequest, train

from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.backends import choose_backend
from finetune_trainer.modeling.support_matrix import NO_PREFIX, YES

_TRAINING = {"maxSteps": 2, "batchSize": 4, "gradientAccumulation": 1, "warmupRatio": 0}
_TOLERANCE = 1e-3
"""Largest difference of a loss between the backends, in nats."""


def measure_unsloth(families: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each family with its cell. An error of Unsloth itself is a `no`: the trainer refuses the family then."""
    with TemporaryDirectory(prefix="unsloth-") as scratch, start_fork_server("unsloth", Path(scratch)) as server:
        for family in families:
            with TemporaryDirectory(prefix="matrix-") as folder:
                yield family, _measure_family(server, family, Path(folder))


def _measure_family(server: ForkServer, family: str, folder: Path) -> str:
    model_dir = build_family(folder / "model", family)
    for backend in ("transformers", "unsloth"):
        (folder / backend).mkdir()
    requested = config({"backend": "unsloth"})
    try:
        choose_backend(requested, lambda: json.loads((model_dir / "config.json").read_bytes()))
        plain = train(TrainingRequest({**_TRAINING, "backend": "transformers"}), model_dir, folder / "transformers")
        tuned = server.train(TrainingRequest({**_TRAINING, "backend": "unsloth"}), model_dir, folder / "unsloth")
    except TrainerError as error:
        return NO_PREFIX + shorten(error.message)
    except AssertionError as error:  # the process failed; its log ends with the error
        last_line = str(error).split("\nassert ")[0].strip().splitlines()[-1]
        return f"{NO_PREFIX}Unsloth {version('unsloth')} fails with {shorten(last_line)}"
    pairs = list(zip(plain.losses, tuned.losses, strict=True))
    if all(abs(expected - loss) <= _TOLERANCE for expected, loss in pairs):
        return YES
    losses = ", ".join(f"{loss:.4g} instead of {expected:.4g}" for expected, loss in pairs)
    return f"{NO_PREFIX}the losses of two steps with Unsloth differ from those with transformers: {losses}"
