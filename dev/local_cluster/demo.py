"""`make demo`: a whole fine-tuning run, from nothing to an answer of the tuned model."""

import json
import sys

from local_cluster import paths, prepare, questions, smollm2
from local_cluster.cluster import Cluster
from local_cluster.console import say, step
from local_cluster.errors import Problem
from local_cluster.follow import follow
from local_cluster.images import OPERATOR, TRAINER
from local_cluster.objects import Objects

CLUSTER = "demo"
JOB = "quickstart"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
MODEL_PREFIX = "smollm2-135m-instruct"
SECRET = "s3-credentials"
_SAMPLES = paths.REPOSITORY / "manifests" / "samples"
SAMPLE = _SAMPLES / "quickstart.yaml"
SAMPLE_ENDPOINT = "http://s3.example:9000"  # what the sample says in place of a store


def run() -> None:
    """Every step leaves alone what is done already, so a second run goes on where the first one stopped."""
    prepare.everything(smollm2.ensure)
    cluster = Cluster(CLUSTER)
    with step(f"cluster {CLUSTER} up"):
        cluster.up()
    new_images = cluster.load_images()
    objects = Objects(cluster.s3)
    with step("base model and data in S3"):
        _fill_s3(objects)
    with step("operator installed by helm"):
        _install(cluster, restart=new_images)
    _apply(cluster)
    say(f"FineTuneJob {JOB} applied")
    follow(cluster, JOB)
    _show_adapter(objects)
    with step("both models asked"):
        answers = questions.ask(cluster, f"s3://models/{MODEL_PREFIX}/", f"s3://adapters/{JOB}")
    _show(cluster, answers)


def remove() -> None:
    Cluster(CLUSTER).down()
    say("the demo is gone; tools and images stay in the cache")


def _fill_s3(objects: Objects) -> None:
    for bucket in ("models", "datasets", "adapters"):
        objects.ensure_bucket(bucket)
    for file in sorted(smollm2.ensure().iterdir()):
        objects.put(file, "models", f"{MODEL_PREFIX}/{file.name}")
    for name in ("train.jsonl", "validation.jsonl"):
        objects.put(_SAMPLES / "data" / f"quickstart-{name}", "datasets", f"quickstart/{name}")


def _install(cluster: Cluster, *, restart: bool) -> None:
    chart = str(paths.REPOSITORY / "charts" / "finetune-operator")
    values = [f"image={OPERATOR.reference}", f"trainer.image={TRAINER.reference}"]
    settings = [word for value in values for word in ("--set-string", value)]
    fresh = not _exists(cluster, "deployment", RELEASE, NAMESPACE)
    cluster.helm("upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--create-namespace", *settings)
    deployment = ["--namespace", NAMESPACE, f"deployment/{RELEASE}"]
    if restart and not fresh:  # the image has a new content under its old name
        cluster.kubectl("rollout", "restart", *deployment)
    try:
        cluster.kubectl("rollout", "status", "--timeout=120s", *deployment)
    except Problem:
        words = cluster.kubectl("logs", "--tail=1", *deployment).strip() or "it says nothing"
        hint = f"export KUBECONFIG={cluster.kubeconfig}; kubectl -n {NAMESPACE} describe pods"
        raise Problem(f"the operator does not become ready: {words} ({hint})") from None


def _exists(cluster: Cluster, kind: str, name: str, namespace: str) -> bool:
    found = cluster.kubectl("--namespace", namespace, "get", kind, name, "--ignore-not-found", "--output=name")
    return bool(found.strip())


def _apply(cluster: Cluster) -> None:
    """The sample as it is, but for the store's address. A run that failed before is tried anew."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key},
    }
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(secret))
    sample = SAMPLE.read_text()
    if SAMPLE_ENDPOINT not in sample:
        raise Problem(f"manifests/samples/quickstart.yaml does not say {SAMPLE_ENDPOINT} any more: adapt demo.py")
    phase = ["get", "ftj", JOB, "--ignore-not-found", "--output=jsonpath={.status.phase}"]
    if cluster.kubectl(*phase).strip() == "Failed":
        cluster.kubectl("delete", "ftj", JOB, "--wait")
    cluster.kubectl("apply", "--filename=-", stdin=sample.replace(SAMPLE_ENDPOINT, cluster.s3.url))


def _show_adapter(objects: Objects) -> None:
    say(f"the adapter, s3://adapters/{JOB}:")
    for key, size in objects.list("adapters", f"{JOB}/"):
        if "/." not in key:
            print(f"         {size:>12,}  {key.removeprefix(f'{JOB}/')}")


def _show(cluster: Cluster, answers: questions.Answers) -> None:
    print(f"\n  Question     {questions.PROMPT}")
    print(f"  Base model   {answers.base}")
    print(f"  Fine-tuned   {answers.tuned}\n")
    print("Look around:")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  kubectl get ftj; kubectl describe ftj {JOB}; kubectl logs job/{JOB}")
    print("Then write your own: docs/ says how, manifests/samples/ has examples. Remove the demo: make demo-down")
    sys.stdout.flush()
