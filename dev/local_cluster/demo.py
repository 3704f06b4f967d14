"""`make demo`: one complete fine-tuning run on a local cluster, from an empty machine to answers of the tuned model."""

import json
from pathlib import Path

from local_cluster import cache, parts, paths, preflight, prepare, questions, smollm2, tools
from local_cluster.cluster import Cluster
from local_cluster.console import echo, log_step
from local_cluster.errors import UserError
from local_cluster.follow import follow_job
from local_cluster.images import CPU_TRAINER, OPERATOR, TASK, Image
from local_cluster.objects import S3Objects

CLUSTER = "demo"
JOB = "quickstart"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
MODEL_PREFIX = "smollm2-135m-instruct"
SECRET = "s3-credentials"
_SAMPLES_FOLDER = paths.REPOSITORY / "manifests" / "samples"
SAMPLE = _SAMPLES_FOLDER / "quickstart.yaml"
SAMPLE_ENDPOINT = "http://s3.example:9000"  # placeholder in the sample, replaced by the address of the S3 server


def run_demo() -> None:
    """Run all steps of the demo. A second call skips completed steps and continues where the first one stopped."""
    echo("preparing programs, images and the base model: about 10 minutes the first time, seconds later")
    preflight.check_host(parts.DEMO)
    prepare.run_in_parallel(lambda: tools.ensure_built(parts.DEMO.modules), _prepare_images_and_model)
    cluster = Cluster(CLUSTER)
    with log_step(f"starting the cluster {CLUSTER}"):
        cluster.up()
    has_new_images = cluster.load_images()
    objects = S3Objects(cluster.s3)
    with log_step("uploading the base model and the data to S3"):
        _upload_inputs(objects)
    with log_step("installing the operator with Helm"):
        _install_operator(cluster, restart=has_new_images)
    _apply_sample(cluster)
    echo(f"applied the FineTuneJob {JOB}; its status:")
    follow_job(cluster, JOB)
    _print_adapter_files(objects)
    with log_step("asking the base model and the tuned model the same question"):
        model_answers = questions.ask_models(cluster, f"s3://models/{MODEL_PREFIX}/", f"s3://adapters/{JOB}")
    _print_answers(model_answers)
    report = paths.get_demo_folder() / "report.html"
    objects.download("adapters", f"{JOB}/report.html", report)
    print(render_next_steps(report, tools.find_program("kubectl"), cluster.kubeconfig), flush=True)


def remove_demo() -> None:
    """Remove the demo's cluster. Programs, images, the base model and the report stay in the cache."""
    Cluster(CLUSTER).down()
    echo(f"removed the cluster {CLUSTER}; programs, images and the report stay in {paths.get_cache_folder()}")


def _prepare_images_and_model() -> None:
    """Build the images, convert the base model in one of them, and remove the downloaded Python packages."""
    prepare.build_images(parts.DEMO)
    smollm2.ensure_model(smollm2.convert_in_image(CPU_TRAINER.built_reference))
    cache.remove_folder(paths.get_demo_folder() / "uv-cache")  # set in the Makefile


def _upload_inputs(objects: S3Objects) -> None:
    for bucket in ("models", "datasets", "adapters"):
        objects.ensure_bucket(bucket)
    for file in sorted(smollm2.ensure_model().iterdir()):
        objects.upload(file, "models", f"{MODEL_PREFIX}/{file.name}")
    for name in ("train.jsonl", "validation.jsonl"):
        objects.upload(_SAMPLES_FOLDER / "data" / f"quickstart-{name}", "datasets", f"quickstart/{name}")


def _install_operator(cluster: Cluster, *, restart: bool) -> None:
    chart = str(paths.REPOSITORY / "charts" / "finetune-operator")
    values = [
        *_build_image_values("image", OPERATOR),
        *_build_image_values("trainer.image", CPU_TRAINER),
        *_build_image_values("task.image", TASK),
    ]
    set_arguments = [word for value in values for word in ("--set-string", value)]
    is_new_release = not _resource_exists(cluster, "deployment", RELEASE, NAMESPACE)
    cluster.helm("upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--create-namespace", *set_arguments)
    deployment_arguments = ["--namespace", NAMESPACE, f"deployment/{RELEASE}"]
    if restart and not is_new_release:  # the tag of a new image is the same, so the Deployment has not changed
        cluster.kubectl("rollout", "restart", *deployment_arguments)
    try:
        cluster.kubectl("rollout", "status", "--timeout=120s", *deployment_arguments)
    except UserError:
        last_log_line = cluster.kubectl("logs", "--tail=1", *deployment_arguments).strip() or "its log is empty"
        hint = f"export KUBECONFIG={cluster.kubeconfig}; kubectl -n {NAMESPACE} describe pods"
        raise UserError(f"the operator is not ready after 120 s: {last_log_line} (for details: {hint})") from None


def _build_image_values(value: str, image: Image) -> list[str]:
    """Return the values of the chart for an image without a registry: its parts, as the chart has them."""
    repository, _, tag = image.reference.partition(":")
    return [f"{value}.repository={repository}", f"{value}.tag={tag}"]


def _resource_exists(cluster: Cluster, kind: str, name: str, namespace: str) -> bool:
    output = cluster.kubectl("--namespace", namespace, "get", kind, name, "--ignore-not-found", "--output=name")
    return bool(output.strip())


def _apply_sample(cluster: Cluster) -> None:
    """Create the FineTuneJob of the sample with the address of the S3 server. A failed one is deleted first."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key},
    }
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(secret))
    sample = SAMPLE.read_text()
    if SAMPLE_ENDPOINT not in sample:
        raise UserError(
            f"manifests/samples/quickstart.yaml does not contain {SAMPLE_ENDPOINT}: change SAMPLE_ENDPOINT in demo.py"
        )
    get_phase_arguments = ["get", "ftj", JOB, "--ignore-not-found", "--output=jsonpath={.status.phase}"]
    if cluster.kubectl(*get_phase_arguments).strip() == "Failed":
        cluster.kubectl("delete", "ftj", JOB, "--wait")
    cluster.kubectl("apply", "--filename=-", stdin=sample.replace(SAMPLE_ENDPOINT, cluster.s3.url))


def _print_adapter_files(objects: S3Objects) -> None:
    echo(f"published files in s3://adapters/{JOB} (bytes, name):")
    for key, size in objects.list_objects("adapters", f"{JOB}/"):
        if "/." not in key:
            print(f"        {size:>12,}  {key.removeprefix(f'{JOB}/')}")


def _print_answers(model_answers: questions.ModelAnswers) -> None:
    print(f"\n  Question      {questions.PROMPT}")
    print(f"  Base model    {model_answers.base}")
    print(f"  Tuned model   {model_answers.tuned}\n")


def render_next_steps(report: Path, kubectl: Path, kubeconfig: Path) -> str:
    """Return where the report is, and commands that can be pasted into any shell of this machine."""
    commands = [
        f"  {kubectl} --kubeconfig {kubeconfig} {arguments}"
        for arguments in ("get ftj", f"describe ftj {JOB}", f"logs job/{JOB}")
    ]
    lines = [
        f"The demo is complete. Its report, for a browser: {report}",
        "To inspect the run:",
        *commands,
        "To train on your own data, read docs/how-to/own-data.md and the examples in manifests/samples/.",
        "To remove the cluster, run `make demo-down`. It keeps the report and everything that was built.",
    ]
    return "\n".join(lines)
