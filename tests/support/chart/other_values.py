"""Another value for each value of the chart."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator.codegen.chart_readme import resolve_reference

# One other value for each leaf of the schema; maps that a user fills freely are leaves.
OTHER_VALUES: dict[str, Any] = {
    "global.imageRegistry": "mirror.example:5000/dockerhub",
    "image.registry": "registry.example",
    "image.repository": "team/finetune-operator",
    "image.tag": "1.2.3",
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "imagePullPolicy": "Never",
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 2,
    "trainer.image.registry": "registry.example",
    "trainer.image.repository": "team/finetune-trainer",
    "trainer.image.tag": "1.2.3",
    "trainer.image.digest": "sha256:" + "1" * 64,
    "trainer.image.pullPolicy": "Always",
    "trainer.imagePullPolicy": "Never",
    "task.image.registry": "registry.example",
    "task.image.repository": "team/finetune-task",
    "task.image.tag": "1.2.3",
    "task.image.digest": "sha256:" + "2" * 64,
    "watchNamespaces": ["team-a"],
    "watchNamespaceSelector": "finetune.dev/enabled=true",
    "installationId": "old/release",
    "bounds.allowedNamespaces": ["ml-*"],
    "bounds.deniedNamespaces": ["kube-*"],
    "bounds.allowedImages": ["registry.example/ml/*@sha256:*"],
    "bounds.allowedServiceAccounts": ["finetune"],
    "bounds.allowedSecrets": ["finetune-*"],
    "bounds.allowedConfigMaps": ["company-ca"],
    "bounds.allowedStorageEndpoints": ["aws", "https://*.s3.example"],
    "bounds.allowedTrackers": ["wandb", "https://*.mlflow.example"],
    "bounds.allowedGraderEndpoints": ["http://vllm.judges:8000", "https://*.judges.example"],
    "bounds.allowedModels": ["hf://**", "s3://models/**"],
    "bounds.allowedDatasets": ["hf://datasets/org/*", "s3://data/**", "pvc://data/**"],
    "bounds.allowedModelCacheClaims": ["model-cache-*"],
    "bounds.allowedPriorityClasses": ["batch"],
    "bounds.allowedTolerations": ["gpu"],
    "bounds.allowedGPUResources": ["nvidia.com/*"],
    "bounds.allowedResources": ["rdma/*"],
    "bounds.allowedPodLabels": ["team"],
    "bounds.allowedPodAnnotations": ["example.com/*"],
    "bounds.allowedProfiles": ["gpu-*"],
    "bounds.requiredNodeSelector": {"pool": "tenants"},
    "bounds.maxGPUs": 0,
    "bounds.maxNodes": 4,
    "defaults.storage.endpoint": "http://minio:9000",
    "defaults.storage.region": "eu-1",
    "defaults.storage.addressing": "path",
    "defaults.storage.checksums": "whenRequired",
    "defaults.storage.credentialsSecretRef": {"name": "minio"},
    "defaults.storage.caConfigMapRef": {"name": "company-ca", "key": "ca.crt"},
    "defaults.nodeSelector": {"pool": "gpus"},
    "defaults.tolerations": [{"key": "gpu", "operator": "Exists"}],
    "defaults.serviceAccountName": "finetune",
    "defaults.imagePullSecrets": [{"name": "registry"}],
    "defaults.priorityClassName": "batch",
    "defaults.resources.requests": {"cpu": "4"},
    "defaults.resources.limits": {"memory": "32Gi"},
    "defaults.startupDeadlineSeconds": 3600,
    "defaults.scratchStorageClassName": "fast",
    "defaults.allowNodeIdentity": True,
    "profiles": {"a100": {"enforce": True}},
    "defaultProfile": "a100",
    "namespaceProfiles": {"team-a": "a100"},
    "networkPolicy.enabled": True,
    "networkPolicy.namespaces": ["team-a"],
    "networkPolicy.dns": [{"ipBlock": {"cidr": "169.254.20.10/32"}}],
    "networkPolicy.destinations": [{"cidr": "10.1.0.0/16", "ports": [9000]}],
    "networkPolicy.allowMetadata": True,
    "networkPolicy.scrapers": [{"namespaceSelector": {}}],
    "operatorNetworkPolicy.enabled": True,
    "operatorNetworkPolicy.apiServer": [{"cidr": "10.1.2.3/32", "ports": [6443]}],
    "operatorNetworkPolicy.scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    "settings.progressInterval": 11,
    "settings.resyncInterval": 601,
    "settings.checkpointRetentionSeconds": 0,
    "settings.workers": 5,
    "settings.requestTimeout": 60,
    "settings.leaseName": "finetune",
    "settings.leaseSeconds": 15,
    "settings.logLevel": "debug",
    "settings.logFormat": "json",
    "metrics.port": 9100,
    "metrics.maxJobs": 10,
    "metrics.labels": {"release": "prometheus"},
    "metrics.interval": 15,
    "metrics.skipCRDCheck": True,
    "metrics.serviceMonitor.enabled": True,
    "metrics.podMonitor.enabled": True,
    "metrics.prometheusRule.enabled": True,
    "metrics.prometheusRule.runbookURL": "https://docs.example/runbooks",
    "metrics.grafanaDashboard.enabled": True,
    "metrics.grafanaDashboard.labels": {"grafana_dashboard": "yes"},
    "crds.enabled": False,
    "rbac.userRoles": False,
    "rbac.aggregateToDefaultRoles": False,
    "kueue.enabled": True,
    "nameOverride": "tuner",
    "fullnameOverride": "ml-tuner",
    "commonLabels": {"team": "ml", "example.com/cost-center": "123"},
    "serviceAccount.create": False,
    "serviceAccount.name": "tuner",
    "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/tuner"},
    "serviceAccount.automount": True,
    "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
    "podLabels": {"tier": "platform"},
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
    ],
    "podSecurityContext": {"fsGroup": 65532},
    "securityContext": {"runAsUser": 65532},
    "resources.requests": {"cpu": "1"},
    "resources.limits": {"memory": "1Gi"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "priorityClassName": "system-cluster-critical",
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 2,
            "topologyKey": "example.com/rack",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "finetune-operator"}},
        }
    ],
    "terminationGracePeriodSeconds": 60,
    "revisionHistoryLimit": 3,
}
# Other values without which a value has no effect.
REQUIRED_VALUES: dict[str, dict[str, Any]] = {
    **{
        f"task.image.{part}": {"task": {"image": {"repository": "finetune-task"}}}
        for part in ("registry", "tag", "digest")
    },
    "defaultProfile": {"profiles": {"a100": {}}},
    "namespaceProfiles": {"profiles": {"a100": {}}},
    "metrics.labels": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "metrics.interval": {"metrics": {"podMonitor": {"enabled": True}}},
    "metrics.grafanaDashboard.labels": {"metrics": {"grafanaDashboard": {"enabled": True}}},
    "metrics.prometheusRule.runbookURL": {"metrics": {"prometheusRule": {"enabled": True}}},
    "operatorNetworkPolicy.apiServer": {"operatorNetworkPolicy": {"enabled": True}},
    "operatorNetworkPolicy.scrapers": {"operatorNetworkPolicy": {"enabled": True}},
    "serviceAccount.create": {"serviceAccount": {"name": "tuner"}},
    "networkPolicy.enabled": {"watchNamespaces": ["team-a"]},
    **{
        f"networkPolicy.{name}": {"watchNamespaces": ["team-a"], "networkPolicy": {"enabled": True}}
        for name in ("dns", "destinations", "allowMetadata", "scrapers")
    },
    "networkPolicy.namespaces": {"watchNamespaces": ["team-b"], "networkPolicy": {"enabled": True}},
}


def iter_schema_leaves(node: Mapping[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted paths of the values that the schema knows. A map without known keys is one value."""
    for key, reference in node["properties"].items():
        value = resolve_reference(reference, root)
        if "properties" in value:
            yield from iter_schema_leaves(value, root, f"{path}{key}.")
        else:
            yield path + key


def nest_value(path: str, value: object) -> dict[str, Any]:
    """`a.b` and 1 become {a: {b: 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merge_values(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Maps merged, all else replaced."""
    return {**base, **{key: merge_values(base.get(key, {}), value) if isinstance(value, Mapping) else value
                       for key, value in changes.items()}}  # fmt: skip


def merge_other_values() -> dict[str, Any]:
    """Return one values file in which every value is another one."""
    merged: dict[str, Any] = {}
    for path, value in OTHER_VALUES.items():
        merged = merge_values(merged, nest_value(path, value))
    del merged["watchNamespaceSelector"]  # cannot be combined with watchNamespaces
    return merged
