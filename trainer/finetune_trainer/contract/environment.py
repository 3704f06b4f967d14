"""How the contract reaches a container: names of variables, files, ports and limits."""

CONFIG_ENV = "FINETUNE_CONFIG"
"""The environment variable that carries a `TrainerConfig` as JSON."""
OUTCOME_PATH_ENV = "FINETUNE_OUTCOME_PATH"
"""Where the trainer writes its `Outcome`; in a pod the container's termination message."""
SCRATCH_ENV = "FINETUNE_SCRATCH"
"""The one folder that the trainer writes to."""
S3_CREDENTIALS_DIR_ENV = "FINETUNE_S3_CREDENTIALS_DIR"
"""A folder with the files of `S3_CREDENTIALS_KEYS`; unset means the pod's or the workstation's own identity."""
S3_CREDENTIALS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Keys of a credentials Secret; the session token is optional."""
HUB_TOKEN_FILE_ENV = "FINETUNE_HUB_TOKEN_FILE"
"""A file that holds the hub's token."""
HUB_TOKEN_KEY = "token"
"""The key of a hub token Secret."""
CA_BUNDLE_ENV = "AWS_CA_BUNDLE"
"""A PEM file of certificate authorities that the storage endpoint is checked against; botocore's own name."""
CLAIMS_DIR_ENV = "FINETUNE_CLAIMS_DIR"
"""The folder below which `pvc://claim/path` is found as `claim/path`."""
PROGRESS_PORT = 8080
"""The pod port that serves `GET /progress`."""
OUTCOME_MAX_BYTES = 4096
"""Kubernetes keeps this much of a termination message and drops the rest."""
