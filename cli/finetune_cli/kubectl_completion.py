"""`kubectl_complete-finetune`: what kubectl calls to complete `kubectl finetune`.

kubectl passes the words after `finetune`, the last of them incomplete. It expects one completion on each line and a
directive of cobra on the last line: https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO

_FILES, _NO_FILES = ":0", ":4"
"""Directives: whether kubectl completes names of files."""


def main() -> None:
    """Print the completions."""
    from typer.main import get_command

    from finetune_cli.app import build_app

    words = ["finetune", *sys.argv[1:]]
    os.environ |= {
        "_FINETUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    completions = StringIO()
    with suppress(SystemExit), redirect_stdout(completions):
        get_command(build_app()).main([], prog_name="finetune")
    lines = completions.getvalue().split("\n")
    names = [line for line in lines if line]
    sys.stdout.write("\n".join([*names, _NO_FILES if names else _FILES]) + "\n")
