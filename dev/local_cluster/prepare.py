"""Tools and images: the long part, done side by side, and only what is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from local_cluster import golden, images, preflight, shell, tools


def everything(*more: Callable[[], object]) -> None:
    """All that clusters of this machine have in common, and what else the caller needs."""
    preflight.check()
    _side_by_side(tools.ensure, make_images, *more)


def make_images() -> None:
    """Build what has changed, and import it into the root that new clusters start from."""
    with golden.lock():
        images.build_all()
        golden.update()


def _side_by_side(*jobs: Callable[[], object]) -> None:
    """The first that fails ends the others."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for job in as_completed([pool.submit(job) for job in jobs]):
                job.result()
        except BaseException:
            shell.terminate_running()
            raise
