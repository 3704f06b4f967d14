"""Entry point of `finetune` and of the kubectl plugin `kubectl-finetune`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from finetune_cli.app import build_app

    build_app()()


if __name__ == "__main__":
    main()
