"""Asking the base model and the tuned model the same question, in a pod with the trainer's image."""

import json
from dataclasses import dataclass
from typing import Any

from local_cluster import node
from local_cluster.cluster import Cluster
from local_cluster.errors import UserError
from local_cluster.images import CPU_TRAINER

PROMPT = "How do I pack the lamp for a trip?"
POD_TIMEOUT = "600s"
MAX_SHOWN_CHARACTERS = 300
_SCRATCH = "/scratch"


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of the base model and of the tuned model, each in one line."""

    base: str
    tuned: str


def ask_models(cluster: Cluster, model: str, adapter: str) -> ModelAnswers:
    """Run a pod that generates the answers of both models. Raises UserError if the pod does not succeed."""
    name = "ask"
    cluster.kubectl("delete", "pod", name, "--ignore-not-found", "--wait")
    arguments = build_generate_arguments(model, adapter, cluster.s3.url)
    cluster.kubectl("create", "--filename=-", stdin=json.dumps(build_pod(name, arguments)))
    try:
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", f"--timeout={POD_TIMEOUT}")
    except UserError as error:
        raise UserError(
            f"pod {name} did not answer ({error}); for its log: "
            f"export KUBECONFIG={cluster.kubeconfig}; kubectl logs {name}"
        ) from None
    return parse_answers(cluster.kubectl("logs", name))


def build_generate_arguments(model: str, adapter: str, endpoint: str) -> list[str]:
    """Return the arguments of `finetune-trainer` that print the answers of both models as JSON."""
    inputs = [f"--model={model}", f"--adapter={adapter}", f"--endpoint={endpoint}"]
    return ["generate", *inputs, f"--prompt={PROMPT}", "--json"]


def parse_answers(log: str) -> ModelAnswers:
    """Return the answers from the pod's log, where they are the only line of JSON."""
    line = next(line for line in reversed(log.splitlines()) if line.startswith("{"))
    completions = json.loads(line)
    return ModelAnswers(_truncate_to_line(completions["base"]), _truncate_to_line(completions["adapter"]))


def _truncate_to_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= MAX_SHOWN_CHARACTERS else f"{joined[:MAX_SHOWN_CHARACTERS]} …"


def build_pod(name: str, arguments: list[str]) -> dict[str, Any]:
    """Return a pod that complies with the restricted Pod Security Standard."""
    secret_variables = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": "s3-credentials", "key": key}}}
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    plain_variables = {"AWS_REGION": node.REGION, "FINETUNE_SCRATCH": _SCRATCH}
    container = {
        "name": "trainer",
        "image": CPU_TRAINER.reference,
        "args": arguments,
        "env": [*secret_variables, *({"name": key, "value": value} for key, value in plain_variables.items())],
        "volumeMounts": [{"name": "scratch", "mountPath": _SCRATCH}],
        # Without a CPU request the pod would get almost no CPU time while a run trains on the same node.
        "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "5Gi"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
