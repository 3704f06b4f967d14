"""A namespace of a real API server for tests of the client. The test writes statuses as the operator does."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import urllib3
from tests.support.operator.api_server import ADMIN_TOKEN, OPERATOR_TOKEN
from tests.support.operator.builders import NOW, Body, build_manifest

from finetune_operator.client import Client

VIEW_RULES = [
    {
        "apiGroups": ["finetune.dev"],
        "resources": ["finetunejobs", "finetuneschedules", "finetunesweeps"],
        "verbs": ["get", "list", "watch"],
    }
]
"""The rules of the chart's ClusterRole for viewers."""
PROXY_RULES = [*VIEW_RULES, {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]


def write_client_kubeconfig(path: Path, server: str, namespace: str, token: str) -> Path:
    """Write a kubeconfig with the contexts `test` and `other`."""
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: test
contexts:
- {{name: test, context: {{cluster: test, user: test, namespace: {namespace}}}}}
- {{name: other, context: {{cluster: other, user: test}}}}
clusters:
- {{name: test, cluster: {{server: "{server}", insecure-skip-tls-verify: true}}}}
- {{name: other, cluster: {{server: "https://127.0.0.1:9", insecure-skip-tls-verify: true}}}}
users: [{{name: test, user: {{token: "{token}"}}}}]
""")
    return path


class ClientNamespace:
    """A namespace, and clients with different rights in it."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server = server
        self.name = f"client-{secrets.token_hex(4)}"
        self._folder = folder
        self._http = urllib3.PoolManager(cert_reqs="CERT_NONE")
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.name}})

    def connect(self, server: str | None = None, token: str = ADMIN_TOKEN, endpoint: str | None = None) -> Client:
        """Return a client, by default of an administrator."""
        path = self._folder / f"kubeconfig-{secrets.token_hex(4)}"
        kubeconfig = write_client_kubeconfig(path, server or self.server, self.name, token)
        return Client(kubeconfig=kubeconfig, endpoint=endpoint)

    def connect_tenant(self, rules: list[Body]) -> Client:
        """Return a client of a user with these rights in the namespace."""
        api_path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.name}"
        self.call("POST", f"{api_path}/roles", {"metadata": {"name": "tenant"}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"}
        user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}
        binding = {"metadata": {"name": "tenant"}, "roleRef": role, "subjects": [user]}
        self.call("POST", f"{api_path}/rolebindings", binding)
        return self.connect(token=OPERATOR_TOKEN)

    def call(self, method: str, path: str, body: Body | None = None) -> Body:
        """Send a request as administrator."""
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": content_type}
        response = self._http.request(method, self.server + path, body=json.dumps(body or {}), headers=headers)
        assert response.status < 400, response.data
        answer: Body = json.loads(response.data)
        return answer

    def create_job(self, name: str = "bot", spec: Body | None = None, **metadata: Any) -> Body:
        """Create a FineTuneJob."""
        return self.call("POST", self.path("finetunejobs"), build_manifest(name, self.name, spec, **metadata))

    def write_status(self, status: Body, name: str = "bot") -> None:
        """Write the status of a FineTuneJob."""
        self.call("PATCH", self.path("finetunejobs", name, "status"), {"status": status})

    def write_condition(self, condition_type: str, reason: str, generation: int = 1, **status: Any) -> None:
        """Write a status with one condition."""
        condition = {
            "type": condition_type, "status": "True", "reason": reason, "message": f"message of {reason}",
            "observedGeneration": generation, "lastTransitionTime": NOW,
        }  # fmt: skip
        self.write_status({"conditions": [condition], "reason": reason, **status})

    def path(self, plural: str, name: str = "", subresource: str = "") -> str:
        """Return the path of a collection or an object."""
        group = "/apis/finetune.dev/v1alpha1" if plural.startswith("finetune") else "/api/v1"
        parts = [f"{group}/namespaces/{self.name}/{plural}", name, subresource]
        return "/".join(part for part in parts if part)
