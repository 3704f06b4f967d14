"""How the contract reaches a container: names of variables, files, ports and limits."""

CONFIG_ENV = "FINETUNE_CONFIG"
"""The environment variable that carries a `TrainerConfig` as JSON."""
RUN_ID_ENV = "FINETUNE_RUN_ID"
"""What all attempts of one run have in common, the FineTuneJob's uid; unset means a run of its own."""
JOB_ENV = "FINETUNE_JOB"
"""The FineTuneJob's `namespace/name`, for trackers."""
OUTCOME_PATH_ENV = "FINETUNE_OUTCOME_PATH"
"""Where the trainer writes its `Outcome`; in a pod the container's termination message."""
STOP_SECONDS_ENV = "FINETUNE_STOP_SECONDS"
"""Seconds from SIGTERM until the process leaves with or without a checkpoint; below the pod's own grace period."""
SCRATCH_ENV = "FINETUNE_SCRATCH"
"""The one folder that the trainer writes to."""
S3_CREDENTIALS_DIR_ENV = "FINETUNE_S3_CREDENTIALS_DIR"
"""A folder with the files of `S3_CREDENTIALS_KEYS`; unset means the pod's or the workstation's own identity."""
S3_CREDENTIALS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Keys of a credentials Secret; the session token is optional."""
HUB_TOKEN_FILE_ENV = "FINETUNE_HUB_TOKEN_FILE"
"""A file that holds the hub's token."""
HUB_TOKEN_KEY = "HF_TOKEN"
"""The key of a hub token Secret. Not `token`: Secrets of service accounts have that key, and must not be taken."""
SIGNING_KEY_FILE_ENV = "FINETUNE_SIGNING_KEY_FILE"
"""A file that holds the private key of `output.signing`."""
SIGNING_KEY = "signing-key.pem"
"""The key of a Secret that holds it. A name that Secrets of other uses do not have, such as `tls.key`."""
TRACKING_CREDENTIALS_DIR_ENV = "FINETUNE_TRACKING_CREDENTIALS_DIR"
"""A folder with files of `TRACKING_KEYS`; unset means what the tracker's library finds itself."""
TRACKING_KEYS = {
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "wandb": ("WANDB_API_KEY",),
    "tensorboard": (),
}
"""Keys of a tracker's Secret: the libraries' own environment variables. MLflow takes a token, or the other two."""
CA_BUNDLE_ENV = "AWS_CA_BUNDLE"
"""A PEM file of certificate authorities that the storage endpoint is checked against; botocore's own name."""
CLAIMS_DIR_ENV = "FINETUNE_CLAIMS_DIR"
"""The folder below which `pvc://claim/path` is found as `claim/path`."""
IMAGE_ENV = "FINETUNE_IMAGE"
"""The image that the trainer runs in, for its provenance."""
PROGRESS_PORT = 8080
"""The pod port that serves `GET /progress`."""
OUTCOME_MAX_BYTES = 4096
"""Kubernetes keeps this much of a termination message and drops the rest."""
OUTPUT_WAIT_SECONDS = 120
"""How long a run waits for another run's claim on its output, which that run renews as long as it is alive."""
NODES_ENV = "FINETUNE_NODES"
"""How many pods train one model together; unset means one."""
PROCESSES_ENV = "FINETUNE_PROCESSES_PER_NODE"
"""Worker processes in each of them, one for each GPU; unset means one."""
RENDEZVOUS_ENV = "FINETUNE_RENDEZVOUS"
"""`host:port` of the first pod, where all of them meet."""
NODE_RANK_ENV = "JOB_COMPLETION_INDEX"
"""Which of the pods this is; Kubernetes sets it in the pods of an Indexed Job."""
RENDEZVOUS_PORT = 29400
"""The first pod's port for `RENDEZVOUS_ENV`."""
