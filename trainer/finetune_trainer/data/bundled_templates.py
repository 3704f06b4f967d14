"""The chat templates that the TRL package contains, by name.

TRL is not imported: the names are checked before the backend is imported, and Unsloth has to be imported before TRL.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_TRAINING_SUFFIX = "_training"
_NON_WORD = re.compile(r"\W+")
_MIN_SIMILARITY = 0.88
"""Minimum ratio of `difflib` between a name and a similar one that an error suggests."""


def find_bundled_template(name: str) -> Path:
    """Return the file of a template: `NAME_training.jinja` if TRL has it, otherwise `NAME.jinja`.

    Raises `CONFIG_INVALID` with the available names if TRL has neither.
    """
    files = _list_files()
    path = files.get(name + _TRAINING_SUFFIX) or files.get(name)
    if path is None:
        available = list_template_names()
        similar = get_close_matches(_NON_WORD.sub("_", name.lower()), available, n=1, cutoff=_MIN_SIMILARITY)
        hint = f"did you mean {similar[0]}? " if similar else ""
        raise TrainerError(
            Reason.CONFIG_INVALID,
            f"model.chatTemplateName: TRL has no chat template {name!r}; {hint}available are {', '.join(available)}",
        )
    return path


def list_template_names() -> list[str]:
    """Return the names of the templates, sorted."""
    return sorted({stem.removesuffix(_TRAINING_SUFFIX) for stem in _list_files()})


@cache
def _list_files() -> dict[str, Path]:
    """Return the files of all templates by name, without `.jinja`."""
    # As in trl.chat_template_utils, whose path of the folder is private.
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    return {path.stem: path for path in Path(spec.origin).with_name("chat_templates").glob("*.jinja")}
