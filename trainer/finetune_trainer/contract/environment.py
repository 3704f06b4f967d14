"""Interface of the trainer's container: environment variables, files, ports and limits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile

CONFIG_ENV = "FINETUNE_CONFIG"
"""Environment variable with the `TrainerConfig` as JSON. A long one continues in `FINETUNE_CONFIG_1`,
`FINETUNE_CONFIG_2` and so on."""


def get_part_variable(variable: str, index: int) -> str:
    """Return the name of the environment variable with a part of a config, counted from 0."""
    return f"{variable}_{index}" if index else variable


def join_parts(environment: Mapping[str, str], variable: str) -> str:
    """Return the config that begins in `variable` and continues in the next ones. It is empty if there is none."""
    parts = (environment.get(get_part_variable(variable, index), "") for index in count())
    return "".join(takewhile(bool, parts))


MANIFEST_ENV = "FINETUNE_MANIFEST"
"""Environment variable with the text of a manifest, for the commands of pods that a user starts. A long one continues
in `FINETUNE_MANIFEST_1` and so on."""
RUN_ID_ENV = "FINETUNE_RUN_ID"
"""Identifier that all attempts of a run share: the uid of the FineTuneJob. If unset, each process is a separate run."""
JOB_ENV = "FINETUNE_JOB"
"""`namespace/name` of the FineTuneJob, for experiment trackers."""
OUTCOME_PATH_ENV = "FINETUNE_OUTCOME_PATH"
"""File that the trainer writes its `Outcome` to. In a pod this is the container's termination message."""
STOP_SECONDS_ENV = "FINETUNE_STOP_SECONDS"
"""Seconds from SIGTERM until the process exits, with or without a checkpoint. Shorter than the pod's grace period."""
LLAMA_CPP_ENV = "FINETUNE_LLAMA_CPP"
"""Folder of llama.cpp's conversion scripts. If unset, it is that of the trainer image, `/opt/llama.cpp`."""
SCRATCH_ENV = "FINETUNE_SCRATCH"
"""The only directory that the trainer writes to."""
SCRATCH_BYTES_ENV = "FINETUNE_SCRATCH_BYTES"
"""Size of the volume of `FINETUNE_SCRATCH` in bytes. The pod is evicted if it writes more, although the file system has
more. If unset, only the free space of the file system limits the trainer."""
MODEL_CACHE_DIR_ENV = "FINETUNE_MODEL_CACHE_DIR"
"""Directory with cached base models. In the trainer's container it is read-only. If unset, there is no cache."""
SHARDING_ENV = "FINETUNE_SHARDING"
"""`full` if the ranks share the base model, each with a part of it. `none`, or if unset: each rank holds a complete
copy."""
SUSPEND_AT_STEP_ENV = "FINETUNE_SUSPEND_AT_STEP"
"""Optimizer step at which the trainer evaluates, saves a checkpoint and ends with `StepReached`. If unset, it trains to
the end."""
TASK_CONFIG_ENV = "FINETUNE_TASK"
"""Environment variable with the `TaskConfig` of a task pod as JSON. A long one continues in `FINETUNE_TASK_1` and so
on: that of the report of a sweep names up to 100 trials."""
S3_CREDENTIALS_DIR_ENV = "FINETUNE_S3_CREDENTIALS_DIR"
"""Directory with one file per key in `S3_CREDENTIALS_KEYS`. If unset, the identity of the pod or workstation is
used."""
S3_CREDENTIALS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Keys of an S3 credentials Secret. The session token is optional."""
HUB_TOKEN_FILE_ENV = "FINETUNE_HUB_TOKEN_FILE"
"""File with the Hugging Face hub token."""
HUB_TOKEN_KEY = "HF_TOKEN"
"""Key of the hub token in its Secret. It is not `token`, because service account Secrets have that key and must not be
usable here."""
DATASET_HUB_TOKEN_FILE_ENV = "FINETUNE_DATASET_HUB_TOKEN_FILE"
"""File with the hub token for `hf://` datasets. If unset, the token of the model is used."""
TEMPLATE_DATE_ENV = "FINETUNE_TEMPLATE_DATE"
"""Date that chat templates write as the current one, such as `2026-11-30`: the day on which the FineTuneJob was
created, so that all attempts of a run train the same tokens. If unset, it is the day of the first attempt. A run that
finds checkpoints keeps their date."""
SIGNING_KEY_FILE_ENV = "FINETUNE_SIGNING_KEY_FILE"
"""File with the private key of `output.signing`."""
SIGNING_KEY = "signing-key.pem"
"""Key of the private key in its Secret. The name is not one that Secrets of other purposes have, such as `tls.key`."""
TRACKING_CREDENTIALS_DIR_ENV = "FINETUNE_TRACKING_CREDENTIALS_DIR"
"""Directory with one file per key in `TRACKING_KEYS`. If unset, the tracker's library finds its credentials by
itself."""
TRACKING_KEYS = {
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "wandb": ("WANDB_API_KEY",),
    "tensorboard": (),
}
"""Keys of a tracker's Secret, named like the environment variables of its library. MLflow needs either the token or the
other two."""
ENDPOINT_CREDENTIALS_DIR_ENV = "FINETUNE_ENDPOINT_CREDENTIALS_DIR"
"""Directory with a folder for each of `evaluation.endpoints`, by its name, that contains the file `api-key`. If unset,
the endpoints are called without credentials."""
ENDPOINT_KEY = "api-key"
"""Key of the bearer token in the Secret of an endpoint. Secrets of other purposes do not have it by convention."""
CA_BUNDLE_ENV = "AWS_CA_BUNDLE"
"""PEM file of the certificate authorities that the storage endpoint is verified with. botocore defines the name."""
CLAIMS_DIR_ENV = "FINETUNE_CLAIMS_DIR"
"""Directory in which `pvc://claim/path` is found as `claim/path`."""
IMAGE_ENV = "FINETUNE_IMAGE"
"""Image that the trainer runs in, for the provenance of the result."""
PROGRESS_PORT = 8080
"""Port of the pod that serves `GET /progress`."""
OUTCOME_MAX_BYTES = 4096
"""Maximum size of a termination message. Kubernetes truncates longer ones."""
OUTPUT_WAIT_SECONDS = 120
"""Seconds that a run waits for another run to release its output. That run renews its lock as long as it is alive."""
NODES_ENV = "FINETUNE_NODES"
"""Number of pods that train one model together. If unset, one."""
PROCESSES_ENV = "FINETUNE_PROCESSES_PER_NODE"
"""Number of processes (ranks) in each pod, one per GPU. If unset, one."""
RENDEZVOUS_ENV = "FINETUNE_RENDEZVOUS"
"""`host:port` of the rendezvous, which the first pod serves."""
NODE_RANK_ENV = "JOB_COMPLETION_INDEX"
"""Rank of the pod among those of the run. Kubernetes sets this variable in the pods of an Indexed Job."""
RENDEZVOUS_PORT = 29400
"""Port of the rendezvous in the first pod."""
