"""Command line of local clusters, for example `python -m local_cluster up NAME`."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from local_cluster import debian, demo, parts, preflight, prepare
from local_cluster.cluster import Cluster
from local_cluster.console import echo
from local_cluster.errors import UserError


def _bring_up(name: str) -> None:
    prepare.prepare_all()
    cluster = Cluster(name)
    cluster.up()
    cluster.print_status()


def _load_images(name: str) -> None:
    _build_images()
    if not Cluster(name).load_images():
        echo(f"cluster {name} already has the current images")


def _build_images() -> None:
    preflight.check_host(parts.ALL)
    prepare.build_images(parts.ALL)


_CLUSTER_COMMANDS: dict[str, tuple[str, Callable[[str], None]]] = {
    "up": ("start a cluster; build missing tools and images first", _bring_up),
    "down": ("stop a cluster and remove it", lambda name: Cluster(name).down()),
    "status": ("show whether a cluster is running, and how to reach it", lambda name: Cluster(name).print_status()),
    "load": ("build the images and load them into a running cluster", _load_images),
}
_GLOBAL_COMMANDS: dict[str, tuple[str, Callable[[], None]]] = {
    "images": ("build the images for new clusters", _build_images),
    "tools": ("build what all clusters share: tools and images", prepare.prepare_all),
    "browser": ("install the browser that the tests of finetune ui drive", debian.install_browser),
    "demo": ("run a complete fine-tuning run in the cluster demo", demo.run_demo),
    "demo-down": ("stop the cluster demo and remove it", demo.remove_demo),
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="local_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, (help_text, _) in _CLUSTER_COMMANDS.items():
        commands.add_parser(command, help=help_text).add_argument("name", help="name of the cluster, such as dev")
    for command, (help_text, _) in _GLOBAL_COMMANDS.items():
        commands.add_parser(command, help=help_text)
    return parser


def _raise_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run one command and return its exit code: 0, 1 after a UserError, or 130 if it was interrupted."""
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    arguments = _build_parser().parse_args()
    try:
        if arguments.command in _CLUSTER_COMMANDS:
            _CLUSTER_COMMANDS[arguments.command][1](arguments.name)
        else:
            _GLOBAL_COMMANDS[arguments.command][1]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C while the process ends
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
