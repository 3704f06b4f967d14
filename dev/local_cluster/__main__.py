"""The command line: `python -m local_cluster up NAME`, and so on."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from local_cluster import demo, preflight, prepare
from local_cluster.cluster import Cluster
from local_cluster.console import echo
from local_cluster.errors import UserError


def _bring_up(name: str) -> None:
    prepare.prepare_all()
    cluster = Cluster(name)
    cluster.up()
    cluster.print_status()


def _load_images(name: str) -> None:
    preflight.check_host()
    prepare.build_images()
    if not Cluster(name).load_images():
        echo(f"cluster {name} has them already")


def _build_images() -> None:
    preflight.check_host()
    prepare.build_images()


_CLUSTER_COMMANDS: dict[str, tuple[str, Callable[[str], None]]] = {
    "up": ("bring a cluster up; make its tools and images first where they are missing", _bring_up),
    "down": ("end a cluster and remove it", lambda name: Cluster(name).down()),
    "status": ("say whether it is up, and how to reach it", lambda name: Cluster(name).print_status()),
    "load": ("build the images and bring them into a running cluster", _load_images),
}
_GLOBAL_COMMANDS: dict[str, tuple[str, Callable[[], None]]] = {
    "images": ("build the images and have them ready for clusters", _build_images),
    "tools": ("make all that clusters share: tools and images", lambda: prepare.prepare_all()),
    "demo": ("show a whole fine-tuning run on a cluster of its own", demo.run_demo),
    "demo-down": ("remove the demo", demo.remove_demo),
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="local_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, (help_text, _) in _CLUSTER_COMMANDS.items():
        commands.add_parser(command, help=help_text).add_argument("name", help="any DNS label, for example test")
    for command, (help_text, _) in _GLOBAL_COMMANDS.items():
        commands.add_parser(command, help=help_text)
    return parser


def _raise_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("interrupted: run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
