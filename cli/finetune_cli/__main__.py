"""Entry point of `finetune` and of the kubectl plugin `kubectl-finetune`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    from finetune_cli.app import run
    from finetune_cli.errors import print_bug

    sys.excepthook = print_bug
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
