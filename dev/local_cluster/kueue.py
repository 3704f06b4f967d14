"""The real Kueue in a local cluster, from its own chart, for `make test-kueue`."""

import shutil

from local_cluster import buildah, cache, golden, paths, store, tools
from local_cluster.cluster import Cluster

NAMESPACE = "kueue-system"
_BUILT = "localhost/kueue:dev"
_IMAGE = "docker.io/library/kueue:dev"


def install(cluster: Cluster) -> None:
    """Build it if it was not yet, 11 minutes of CPU time, and wait until its webhooks answer."""
    tools.ensure([tools.KUEUE])
    _load_image(cluster)
    chart = tools.module_folder(tools.KUEUE, "sigs.k8s.io/kueue") / "charts" / "kueue"
    values = tools.KUEUE.source / "values.yaml"
    where = ["--namespace", NAMESPACE]
    cluster.helm("upgrade", "--install", "kueue", str(chart), *where, "--create-namespace", "--values", str(values))
    # Its certificates come by a Secret, which the kubelet looks at once in a minute or two.
    cluster.kubectl(*where, "rollout", "status", "deployment/kueue-controller-manager", "--timeout=300s")


def _load_image(cluster: Cluster) -> None:
    """An image of one file. buildah's copy is in nobody's way: the next build of our images drops it."""
    folder = paths.cache() / "buildah" / "kueue"
    log = paths.logs() / "kueue.log"
    with golden.lock():
        with cache.fresh_folder(folder) as root:
            shutil.copy2(tools.KUEUE.folder / "kueue", root / "manager")
            buildah.from_folder(root, _BUILT, log, {"PATH": "/"})
        cache.remove(folder)
        cluster.containerd().import_image(store.read(_BUILT), _IMAGE)
