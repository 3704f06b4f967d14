"""The command line: `python -m local_cluster up NAME`, and so on."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from local_cluster import demo, preflight, prepare
from local_cluster.cluster import Cluster
from local_cluster.console import say
from local_cluster.errors import Problem


def _up(name: str) -> None:
    prepare.everything()
    cluster = Cluster(name)
    cluster.up()
    cluster.report()


def _load(name: str) -> None:
    preflight.check()
    prepare.make_images()
    if not Cluster(name).load_images():
        say(f"cluster {name} has them already")


def _images() -> None:
    preflight.check()
    prepare.make_images()


_NAMED: dict[str, tuple[str, Callable[[str], None]]] = {
    "up": ("bring a cluster up; make its tools and images first where they are missing", _up),
    "down": ("end a cluster and remove it", lambda name: Cluster(name).down()),
    "status": ("say whether it is up, and how to reach it", lambda name: Cluster(name).report()),
    "load": ("build the images and bring them into a running cluster", _load),
}
_UNNAMED: dict[str, tuple[str, Callable[[], None]]] = {
    "images": ("build the images and have them ready for clusters", _images),
    "tools": ("make all that clusters share: tools and images", lambda: prepare.everything()),
    "demo": ("show a whole fine-tuning run on a cluster of its own", demo.run),
    "demo-down": ("remove the demo", demo.remove),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="local_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, (text, _) in _NAMED.items():
        commands.add_parser(command, help=text).add_argument("name", help="any DNS label, for example test")
    for command, (text, _) in _UNNAMED.items():
        commands.add_parser(command, help=text)
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _parser().parse_args()
    try:
        if arguments.command in _NAMED:
            _NAMED[arguments.command][1](arguments.name)
        else:
            _UNNAMED[arguments.command][1]()
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("interrupted: run it again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
