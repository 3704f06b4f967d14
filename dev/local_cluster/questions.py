"""One question to the base model and to the tuned one, asked in the cluster with the trainer's own image."""

import json
from dataclasses import dataclass
from typing import Any

from local_cluster import node
from local_cluster.cluster import Cluster
from local_cluster.errors import Problem
from local_cluster.images import TRAINER

PROMPT = "How do I pack the lamp for a trip?"
LIMIT = "600s"
SHOWN = 300  # characters of an answer
_SCRATCH = "/scratch"


@dataclass(frozen=True)
class Answers:
    base: str
    tuned: str


def ask(cluster: Cluster, model: str, adapter: str) -> Answers:
    name = "ask"
    cluster.kubectl("delete", "pod", name, "--ignore-not-found", "--wait")
    arguments = generate_arguments(model, adapter, cluster.s3.url)
    cluster.kubectl("create", "--filename=-", stdin=json.dumps(pod(name, arguments)))
    try:
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", f"--timeout={LIMIT}")
    except Problem as problem:
        raise Problem(f"pod {name} gave no answer ({problem}): kubectl logs {name}") from None
    return answers(cluster.kubectl("logs", name))


def generate_arguments(model: str, adapter: str, endpoint: str) -> list[str]:
    """What the trainer's command line wants for the answers of both models."""
    return [
        "generate",
        f"--model={model}",
        f"--adapter={adapter}",
        f"--endpoint={endpoint}",
        f"--prompt={PROMPT}",
        "--json",
    ]


def answers(log: str) -> Answers:
    """The log holds what the trainer is at, too; the answers are its one line of JSON."""
    line = next(line for line in reversed(log.splitlines()) if line.startswith("{"))
    found = json.loads(line)
    return Answers(_one_line(found["base"]), _one_line(found["adapter"]))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"


def pod(name: str, arguments: list[str]) -> dict[str, Any]:
    """A pod that a namespace with the restricted Pod Security level takes."""
    keys = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": "s3-credentials", "key": key}}}
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    plain = {"AWS_REGION": node.REGION, "FINETUNE_SCRATCH": _SCRATCH}
    container = {
        "name": "trainer",
        "image": TRAINER.reference,
        "args": arguments,
        "env": [*keys, *({"name": key, "value": value} for key, value in plain.items())],
        "volumeMounts": [{"name": "scratch", "mountPath": _SCRATCH}],
        # Without a share of the CPU it would wait for ever beside a run that trains.
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
