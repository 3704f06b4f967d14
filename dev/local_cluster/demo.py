"""`make demo`: a whole fine-tuning run, from nothing to an answer of the tuned model."""

import json
import sys

from local_cluster import paths, prepare, questions, smollm2
from local_cluster.cluster import Cluster
from local_cluster.console import echo, log_step
from local_cluster.errors import UserError
from local_cluster.follow import follow_job
from local_cluster.images import OPERATOR, TRAINER
from local_cluster.objects import S3Objects

CLUSTER = "demo"
JOB = "quickstart"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
MODEL_PREFIX = "smollm2-135m-instruct"
SECRET = "s3-credentials"
_SAMPLES_FOLDER = paths.REPOSITORY / "manifests" / "samples"
SAMPLE = _SAMPLES_FOLDER / "quickstart.yaml"
SAMPLE_ENDPOINT = "http://s3.example:9000"  # what the sample says in place of a store


def run_demo() -> None:
    """Every step leaves alone what is done already, so a second run goes on where the first one stopped."""
    prepare.prepare_all(smollm2.ensure_model)
    cluster = Cluster(CLUSTER)
    with log_step(f"cluster {CLUSTER} up"):
        cluster.up()
    has_new_images = cluster.load_images()
    objects = S3Objects(cluster.s3)
    with log_step("base model and data in S3"):
        _upload_inputs(objects)
    with log_step("operator installed by helm"):
        _install_operator(cluster, restart=has_new_images)
    _apply_sample(cluster)
    echo(f"FineTuneJob {JOB} applied")
    follow_job(cluster, JOB)
    _print_adapter_files(objects)
    with log_step("both models asked"):
        model_answers = questions.ask_models(cluster, f"s3://models/{MODEL_PREFIX}/", f"s3://adapters/{JOB}")
    _print_answers(cluster, model_answers)


def remove_demo() -> None:
    Cluster(CLUSTER).down()
    echo("the demo is gone; tools and images stay in the cache")


def _upload_inputs(objects: S3Objects) -> None:
    for bucket in ("models", "datasets", "adapters"):
        objects.ensure_bucket(bucket)
    for file in sorted(smollm2.ensure_model().iterdir()):
        objects.upload(file, "models", f"{MODEL_PREFIX}/{file.name}")
    for name in ("train.jsonl", "validation.jsonl"):
        objects.upload(_SAMPLES_FOLDER / "data" / f"quickstart-{name}", "datasets", f"quickstart/{name}")


def _install_operator(cluster: Cluster, *, restart: bool) -> None:
    chart = str(paths.REPOSITORY / "charts" / "finetune-operator")
    values = [f"image={OPERATOR.reference}", f"trainer.image={TRAINER.reference}"]
    set_arguments = [word for value in values for word in ("--set-string", value)]
    is_new_release = not _resource_exists(cluster, "deployment", RELEASE, NAMESPACE)
    cluster.helm("upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--create-namespace", *set_arguments)
    deployment_arguments = ["--namespace", NAMESPACE, f"deployment/{RELEASE}"]
    if restart and not is_new_release:  # the image has a new content under its old name
        cluster.kubectl("rollout", "restart", *deployment_arguments)
    try:
        cluster.kubectl("rollout", "status", "--timeout=120s", *deployment_arguments)
    except UserError:
        last_log_line = cluster.kubectl("logs", "--tail=1", *deployment_arguments).strip() or "it says nothing"
        hint = f"export KUBECONFIG={cluster.kubeconfig}; kubectl -n {NAMESPACE} describe pods"
        raise UserError(f"the operator does not become ready: {last_log_line} ({hint})") from None


def _resource_exists(cluster: Cluster, kind: str, name: str, namespace: str) -> bool:
    output = cluster.kubectl("--namespace", namespace, "get", kind, name, "--ignore-not-found", "--output=name")
    return bool(output.strip())


def _apply_sample(cluster: Cluster) -> None:
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
        raise UserError(f"manifests/samples/quickstart.yaml does not say {SAMPLE_ENDPOINT} any more: adapt demo.py")
    get_phase_arguments = ["get", "ftj", JOB, "--ignore-not-found", "--output=jsonpath={.status.phase}"]
    if cluster.kubectl(*get_phase_arguments).strip() == "Failed":
        cluster.kubectl("delete", "ftj", JOB, "--wait")
    cluster.kubectl("apply", "--filename=-", stdin=sample.replace(SAMPLE_ENDPOINT, cluster.s3.url))


def _print_adapter_files(objects: S3Objects) -> None:
    echo(f"the adapter, s3://adapters/{JOB}:")
    for key, size in objects.list_objects("adapters", f"{JOB}/"):
        if "/." not in key:
            print(f"         {size:>12,}  {key.removeprefix(f'{JOB}/')}")


def _print_answers(cluster: Cluster, model_answers: questions.ModelAnswers) -> None:
    print(f"\n  Question     {questions.PROMPT}")
    print(f"  Base model   {model_answers.base}")
    print(f"  Fine-tuned   {model_answers.tuned}\n")
    print("Look around:")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  kubectl get ftj; kubectl describe ftj {JOB}; kubectl logs job/{JOB}")
    print("Then write your own: docs/ says how, manifests/samples/ has examples. Remove the demo: make demo-down")
    sys.stdout.flush()
