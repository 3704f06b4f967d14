"""Building everything that the clusters of a machine share, in parallel, and only what is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from local_cluster import golden, images, preflight, shell, tools


def prepare_all(*extra_jobs: Callable[[], object]) -> None:
    """Check the host, then build the Go programs and the images, and run the extra jobs, all in parallel."""
    preflight.check_host()
    _run_in_parallel(tools.ensure_built, build_images, *extra_jobs)


def build_images() -> None:
    """Build the images that have changed and import them into the containerd root that new clusters start from."""
    with golden.lock_images():
        images.build_all()
        golden.import_built_images()


def _run_in_parallel(*jobs: Callable[[], object]) -> None:
    """Run all jobs in threads. If one fails, the programs that the others run are terminated."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                future.result()
        except BaseException:
            shell.terminate_running()
            raise
