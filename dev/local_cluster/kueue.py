"""The real Kueue in a local cluster, from its own chart, for `make test-kueue`."""

import shutil

from local_cluster import buildah, cache, golden, paths, store, tools
from local_cluster.cluster import Cluster

NAMESPACE = "kueue-system"
_BUILT_REFERENCE = "localhost/kueue:dev"
_IMAGE_NAME = "docker.io/library/kueue:dev"


def install_kueue(cluster: Cluster) -> None:
    """Build it if it was not yet, 11 minutes of CPU time, and wait until its webhooks answer."""
    tools.ensure_built([tools.KUEUE])
    _load_image(cluster)
    chart = tools.find_module_folder(tools.KUEUE, "sigs.k8s.io/kueue") / "charts" / "kueue"
    values = tools.KUEUE.source / "values.yaml"
    namespace_arguments = ["--namespace", NAMESPACE]
    cluster.helm(
        "upgrade", "--install", "kueue", str(chart), *namespace_arguments, "--create-namespace", "--values", str(values)
    )
    # Its certificates come by a Secret, which the kubelet looks at once in a minute or two.
    cluster.kubectl(*namespace_arguments, "rollout", "status", "deployment/kueue-controller-manager", "--timeout=300s")


def _load_image(cluster: Cluster) -> None:
    """An image of one file. buildah's copy is in nobody's way: the next build of our images drops it."""
    folder = paths.get_cache_folder() / "buildah" / "kueue"
    log = paths.get_logs_folder() / "kueue.log"
    with golden.lock_images():
        with cache.replace_folder(folder) as root:
            shutil.copy2(tools.KUEUE.folder / "kueue", root / "manager")
            buildah.build_from_folder(root, _BUILT_REFERENCE, log, {"PATH": "/"})
        cache.remove_folder(folder)
        cluster.get_containerd().import_image(store.read_image(_BUILT_REFERENCE), _IMAGE_NAME)
