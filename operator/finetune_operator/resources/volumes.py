"""Builders of a training pod's volumes, and of the environment variables that contain their paths.

Only keys with fixed names are mounted from a Secret, so that no Secret of another purpose can be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.api import FineTuneJobSpec, StorageSpec
from finetune_operator.api.compute import ScratchSpec
from finetune_operator.api.objects import Body
from finetune_trainer import contract

SCRATCH_DIR = "/scratch"
S3_CREDENTIALS_DIR = "/etc/finetune/s3"
HUB_TOKEN_DIR = "/etc/finetune/hub"
DATASET_HUB_TOKEN_DIR = "/etc/finetune/dataset-hub"
CA_DIR = "/etc/finetune/ca"
SIGNING_DIR = "/etc/finetune/signing"
TRACKING_DIR = "/etc/finetune/tracking"
CLAIMS_DIR = "/var/lib/finetune/claims"

_PVC_SCHEME = "pvc://"
_CA_FILE = "ca.crt"
_HUB_TOKEN_FILE = f"{HUB_TOKEN_DIR}/{contract.HUB_TOKEN_KEY}"
_DATASET_HUB_TOKEN_FILE = f"{DATASET_HUB_TOKEN_DIR}/{contract.HUB_TOKEN_KEY}"
_FILE_MODE = 0o440


def build_environment(spec: FineTuneJobSpec, allow_node_identity: bool) -> dict[str, str]:
    """Return the variables with the paths of the mounts, and the one that disables the identity of the node."""
    environment = {
        **build_storage_environment(spec.storage, allow_node_identity),
        contract.SCRATCH_ENV: SCRATCH_DIR,
        # The root file system is read-only, and images set these variables to other folders.
        "HOME": SCRATCH_DIR,
        "TMPDIR": SCRATCH_DIR,
    }
    tracking_secret = spec.tracking.credentials_secret_ref if spec.tracking else None
    paths = (
        (spec.model.token_secret_ref, contract.HUB_TOKEN_FILE_ENV, _HUB_TOKEN_FILE),
        (spec.dataset.token_secret_ref, contract.DATASET_HUB_TOKEN_FILE_ENV, _DATASET_HUB_TOKEN_FILE),
        (spec.output.signing, contract.SIGNING_KEY_FILE_ENV, f"{SIGNING_DIR}/{contract.SIGNING_KEY}"),
        (tracking_secret, contract.TRACKING_CREDENTIALS_DIR_ENV, TRACKING_DIR),
        (_list_claims(spec), contract.CLAIMS_DIR_ENV, CLAIMS_DIR),
    )
    return environment | {name: path for is_mounted, name, path in paths if is_mounted}


def build_storage_environment(storage: StorageSpec, allow_node_identity: bool) -> dict[str, str]:
    """Return the variables that the access to S3 needs.

    The identity of the node may have more permissions than the user. Identities of the pod's service account do not
    need instance metadata: https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html
    """
    environment = {}
    if storage.credentials_secret_ref or not allow_node_identity:
        environment["AWS_EC2_METADATA_DISABLED"] = "true"
    if storage.credentials_secret_ref:
        environment[contract.S3_CREDENTIALS_DIR_ENV] = S3_CREDENTIALS_DIR
    if storage.ca_config_map_ref:
        environment[contract.CA_BUNDLE_ENV] = f"{CA_DIR}/{_CA_FILE}"
    return environment


def build_mounts(spec: FineTuneJobSpec) -> list[tuple[Body, Body]]:
    """Return pairs of a volume mount and the source of its volume. All mounts except scratch are read-only."""
    scratch = ({"name": "scratch", "mountPath": SCRATCH_DIR}, _build_scratch_source(spec.compute.scratch))
    return [scratch, *_build_access_mounts(spec), *_build_claim_mounts(spec)]


def build_storage_mounts(storage: StorageSpec) -> list[tuple[Body, Body]]:
    """Return the mounts of the Secret and the ConfigMap that the access to S3 needs."""
    mounts: list[tuple[Body, Body]] = []
    if storage.credentials_secret_ref:
        source = _build_s3_credentials_source(storage.credentials_secret_ref.name)
        mounts.append((_build_read_only_mount("s3-credentials", S3_CREDENTIALS_DIR), source))
    if storage.ca_config_map_ref:
        reference = storage.ca_config_map_ref
        source = {"configMap": {"name": reference.name, "items": [{"key": reference.key, "path": _CA_FILE}]}}
        mounts.append((_build_read_only_mount("ca", CA_DIR), source))
    return mounts


def _build_access_mounts(spec: FineTuneJobSpec) -> list[tuple[Body, Body]]:
    """Return the mounts of the Secrets and the ConfigMap that the spec refers to."""
    mounts = build_storage_mounts(spec.storage)
    if spec.model.token_secret_ref:
        source = _build_secret_source(spec.model.token_secret_ref.name, contract.HUB_TOKEN_KEY)
        mounts.append((_build_read_only_mount("hub-token", HUB_TOKEN_DIR), source))
    if spec.dataset.token_secret_ref:
        source = _build_secret_source(spec.dataset.token_secret_ref.name, contract.HUB_TOKEN_KEY)
        mounts.append((_build_read_only_mount("dataset-hub-token", DATASET_HUB_TOKEN_DIR), source))
    if spec.output.signing:
        source = _build_secret_source(spec.output.signing.key_secret_ref.name, contract.SIGNING_KEY)
        mounts.append((_build_read_only_mount("signing", SIGNING_DIR), source))
    if spec.tracking and spec.tracking.credentials_secret_ref:
        keys = contract.TRACKING_KEYS[spec.tracking.tool]
        source = _build_optional_secret_source(spec.tracking.credentials_secret_ref.name, keys)
        mounts.append((_build_read_only_mount("tracking", TRACKING_DIR), source))
    return mounts


def _build_claim_mounts(spec: FineTuneJobSpec) -> list[tuple[Body, Body]]:
    """Return one mount for each claim. Volumes are numbered, because names of claims can be longer than theirs."""
    return [
        (
            _build_read_only_mount(f"claim-{number}", f"{CLAIMS_DIR}/{claim_name}"),
            {"persistentVolumeClaim": {"claimName": claim_name, "readOnly": True}},
        )
        for number, claim_name in enumerate(_list_claims(spec))
    ]


def _list_claims(spec: FineTuneJobSpec) -> list[str]:
    """Return the names of the claims that model and data are read from, each once, in the order of the spec."""
    validation_sources = (spec.dataset.validation and spec.dataset.validation.sources) or []
    uris = [spec.model.uri, *(source.uri for source in (*spec.dataset.sources, *validation_sources))]
    names = [uri.removeprefix(_PVC_SCHEME).partition("/")[0] for uri in uris if uri.startswith(_PVC_SCHEME)]
    return list(dict.fromkeys(names))


def _build_read_only_mount(name: str, path: str) -> Body:
    return {"name": name, "mountPath": path, "readOnly": True}


def _build_secret_source(name: str, key: str) -> Body:
    return {"secret": {"secretName": name, "items": [{"key": key, "path": key}], "defaultMode": _FILE_MODE}}


def _build_optional_secret_source(name: str, keys: Sequence[str]) -> Body:
    """Return a source for those of the keys that the Secret contains. The trainer checks them."""
    items = [{"key": key, "path": key} for key in keys]
    return {"secret": {"secretName": name, "items": items, "optional": True, "defaultMode": _FILE_MODE}}


def _build_scratch_source(scratch: ScratchSpec) -> Body:
    if scratch.storage_class_name is None:
        return {"emptyDir": {"sizeLimit": scratch.size}}
    claim_spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": scratch.storage_class_name,
        "resources": {"requests": {"storage": scratch.size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim_spec}}}


def _build_s3_credentials_source(secret_name: str) -> Body:
    """Return a source with two required keys, without which the pod does not start, and the optional session token."""
    required_keys, session_keys = contract.S3_CREDENTIALS_KEYS[:2], contract.S3_CREDENTIALS_KEYS[2:]
    sources = [
        {"secret": {"name": secret_name, "items": [{"key": key, "path": key} for key in required_keys]}},
        {
            "secret": {
                "name": secret_name,
                "items": [{"key": key, "path": key} for key in session_keys],
                "optional": True,
            }
        },
    ]
    return {"projected": {"sources": sources, "defaultMode": _FILE_MODE}}
