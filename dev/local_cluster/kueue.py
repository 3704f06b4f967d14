"""Installing Kueue into a local cluster from its own chart, for `make test-kueue`."""

import shutil

from local_cluster import buildah, cache, golden, paths, store, tools
from local_cluster.cluster import Cluster

NAMESPACE = "kueue-system"
_BUILT_REFERENCE = "localhost/kueue:dev"
_IMAGE_NAME = "docker.io/library/kueue:dev"


def install_kueue(cluster: Cluster) -> None:
    """Build Kueue if it is not cached (11 minutes of CPU time), install it, and wait until it is ready."""
    tools.ensure_built([tools.KUEUE])
    _load_image(cluster)
    chart = tools.find_module_folder(tools.KUEUE, "sigs.k8s.io/kueue") / "charts" / "kueue"
    values = tools.KUEUE.source / "values.yaml"
    namespace_arguments = ["--namespace", NAMESPACE]
    cluster.helm(
        "upgrade", "--install", "kueue", str(chart), *namespace_arguments, "--create-namespace", "--values", str(values)
    )
    # Kueue writes its certificates to a Secret, and the kubelet syncs mounted Secrets only every minute or two.
    cluster.kubectl(*namespace_arguments, "rollout", "status", "deployment/kueue-controller-manager", "--timeout=300s")


def _load_image(cluster: Cluster) -> None:
    """Import an image with Kueue's program. The next build of images removes buildah's copy of it."""
    folder = paths.get_cache_folder() / "buildah" / "kueue"
    log = paths.get_logs_folder() / "kueue.log"
    with golden.lock_images():
        with cache.replace_folder(folder) as root:
            shutil.copy2(tools.KUEUE.folder / "kueue", root / "manager")
            buildah.build_from_folder(root, _BUILT_REFERENCE, log, {"PATH": "/"})
        cache.remove_folder(folder)
        cluster.get_containerd().import_image(store.read_image(_BUILT_REFERENCE), _IMAGE_NAME)
