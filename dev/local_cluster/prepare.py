"""Tools and images: the long part, done side by side, and only what is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from local_cluster import golden, images, preflight, shell, tools


def prepare_all(*extra_jobs: Callable[[], object]) -> None:
    """All that clusters of this machine have in common, and what else the caller needs."""
    preflight.check_host()
    _run_in_parallel(tools.ensure_built, build_images, *extra_jobs)


def build_images() -> None:
    """Build what has changed, and import it into the root that new clusters start from."""
    with golden.lock_images():
        images.build_all()
        golden.import_built_images()


def _run_in_parallel(*jobs: Callable[[], object]) -> None:
    """The first that fails ends the others."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                future.result()
        except BaseException:
            shell.terminate_running()
            raise
