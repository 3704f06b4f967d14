"""Building everything that the clusters of a machine share, in parallel, and only what is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from local_cluster import golden, images, parts, preflight, shell, tools
from local_cluster.parts import Parts


def prepare_all() -> None:
    """Check the host, then build the Go programs and the images of all clusters, in parallel."""
    preflight.check_host(parts.ALL)
    run_in_parallel(tools.ensure_built, lambda: build_images(parts.ALL))


def build_images(needed: Parts) -> None:
    """Build the images that have changed and import them into the containerd root that new clusters start from."""
    with golden.lock_images():
        images.build_missing(needed.images)
        golden.import_built_images(needed.images)


def run_in_parallel(*jobs: Callable[[], object]) -> None:
    """Run all jobs in threads. If one fails, the programs that the others run are terminated."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                future.result()
        except BaseException:
            shell.terminate_running()
            raise
