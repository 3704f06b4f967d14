"""A namespace of a real API server, with kubeconfigs of an administrator and of a tenant."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api, CustomObjectsApi, RbacAuthorizationV1Api
from tests.support.operator import api_server as api

from finetune_operator.client import Client

Body = dict[str, Any]
TENANT = "operator"
"""The user of the API server who has no rights but those that a test gives."""


def write_kubeconfig(path: Path, url: str, certificate: Path, token: str, namespace: str) -> Path:
    """Write a kubeconfig for a user, unless it exists: threads and processes read it."""
    if path.exists():
        return path
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test, namespace: {namespace}}}}}]
clusters: [{{name: test, cluster: {{server: "{url}", certificate-authority: "{certificate}"}}}}]
users: [{{name: test, user: {{token: "{token}"}}}}]
""")
    return path


@dataclass
class ClusterNamespace:
    """An empty namespace."""

    url: str
    certificate: Path
    folder: Path
    name: str

    @classmethod
    def open(cls, url: str, certificate: Path, folder: Path) -> ClusterNamespace:
        """Create a namespace that enforces the restricted Pod Security level."""
        namespace = cls(url, certificate, folder, f"test-{secrets.token_hex(4)}")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace.core.create_namespace({"metadata": {"name": namespace.name, "labels": labels}})
        return namespace

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig of an administrator."""
        path = self.folder / "admin-kubeconfig"
        return write_kubeconfig(path, self.url, self.certificate, api.ADMIN_TOKEN, self.name)

    @property
    def tenant_kubeconfig(self) -> Path:
        """The kubeconfig of the tenant."""
        path = self.folder / "tenant-kubeconfig"
        return write_kubeconfig(path, self.url, self.certificate, api.OPERATOR_TOKEN, self.name)

    @property
    def client(self) -> Client:
        """The client of an administrator."""
        return Client(self.name, kubeconfig=self.admin_kubeconfig)

    @property
    def core(self) -> CoreV1Api:
        """The official client of an administrator."""
        return CoreV1Api(self.client.server.api_client)

    def grant(self, *rules: Body) -> None:
        """Give the tenant a role in the namespace."""
        rbac = RbacAuthorizationV1Api(self.core.api_client)
        rbac.create_namespaced_role(self.name, {"metadata": {"name": "tenant"}, "rules": [*rules]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": TENANT}
        binding = {"metadata": {"name": "tenant"}, "roleRef": reference, "subjects": [subject]}
        rbac.create_namespaced_role_binding(self.name, binding)

    def create(self, plural: str, body: Body, status: Body | None = None) -> Body:
        """Create an object of finetune.dev with a status."""
        created: Any = CustomObjectsApi(self.core.api_client).create_namespaced_custom_object(
            "finetune.dev", "v1alpha1", self.name, plural, body
        )
        return dict(created) if status is None else self.write_status(plural, body["metadata"]["name"], status)

    def write_status(self, plural: str, name: str, status: Body) -> Body:
        """Write the status of an object, as the operator does."""
        written: Any = CustomObjectsApi(self.core.api_client).patch_namespaced_custom_object_status(
            "finetune.dev", "v1alpha1", self.name, plural, name, {"status": status},
            _content_type="application/merge-patch+json",
        )  # fmt: skip
        return dict(written)

    def read(self, plural: str, name: str) -> Body:
        """Return an object of finetune.dev."""
        found: Any = CustomObjectsApi(self.core.api_client).get_namespaced_custom_object(
            "finetune.dev", "v1alpha1", self.name, plural, name
        )
        return dict(found)
