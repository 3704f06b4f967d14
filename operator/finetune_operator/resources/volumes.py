"""Builders of a training pod's volumes, and of the environment variables that contain their paths.

Only keys with fixed names are mounted from a Secret, so that no Secret of another purpose can be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.api import ConfigMapKeyRef, StorageSpec
from finetune_operator.api.compute import ComputeSpec, ScratchSpec
from finetune_operator.api.labels import SCRATCH_VOLUME
from finetune_operator.api.objects import Body
from finetune_operator.api.spec import RunSpec
from finetune_trainer import contract
from finetune_trainer.contract import DataSource, Quantity, parse_quantity

SCRATCH_DIR = "/scratch"
S3_CREDENTIALS_DIR = "/etc/finetune/s3"
HUB_TOKEN_DIR = "/etc/finetune/hub"
DATASET_HUB_TOKEN_DIR = "/etc/finetune/dataset-hub"
CA_DIR = "/etc/finetune/ca"
PROFILE_CA_DIR = "/etc/finetune/profile-ca"
SIGNING_DIR = "/etc/finetune/signing"
TRACKING_DIR = "/etc/finetune/tracking"
ENDPOINTS_DIR = "/etc/finetune/endpoints"
CLAIMS_DIR = "/var/lib/finetune/claims"
CA_FILE = "ca.crt"
MODEL_CACHE_DIR = "/var/lib/finetune/model-cache"

EPHEMERAL_STORAGE = "ephemeral-storage"
"""Resource of the disk of a node, which `emptyDir` volumes and logs use."""
_PVC_SCHEME = "pvc://"
_HUB_TOKEN_FILE = f"{HUB_TOKEN_DIR}/{contract.HUB_TOKEN_KEY}"
_DATASET_HUB_TOKEN_FILE = f"{DATASET_HUB_TOKEN_DIR}/{contract.HUB_TOKEN_KEY}"
_FILE_MODE = 0o440


def build_environment(spec: RunSpec, allow_node_identity: bool) -> dict[str, str]:
    """Return the variables with the paths of the mounts, and the one that disables the identity of the node."""
    environment = {
        **build_storage_environment(spec.storage, allow_node_identity),
        contract.SCRATCH_ENV: SCRATCH_DIR,
        contract.SCRATCH_BYTES_ENV: str(int(parse_quantity(compute_scratch_size(spec.compute)))),
        # The root file system is read-only, and images set these variables to other folders.
        "HOME": SCRATCH_DIR,
        "TMPDIR": SCRATCH_DIR,
    }
    tracking_secret = spec.tracking.credentials_secret_ref if spec.tracking else None
    if tracking_secret:
        environment[contract.TRACKING_CREDENTIALS_DIR_ENV] = TRACKING_DIR
    if any(endpoint.credentials_secret_ref for endpoint in spec.evaluation.endpoints):
        environment[contract.ENDPOINT_CREDENTIALS_DIR_ENV] = ENDPOINTS_DIR
    if get_cache_claim(spec):
        environment[contract.MODEL_CACHE_DIR_ENV] = MODEL_CACHE_DIR
    return environment | build_input_environment(spec) | build_signing_environment(spec)


def build_input_environment(spec: RunSpec) -> dict[str, str]:
    """Return the variables with the paths of what model and data are read with, besides S3."""
    paths = (
        (spec.model.token_secret_ref, contract.HUB_TOKEN_FILE_ENV, _HUB_TOKEN_FILE),
        (spec.dataset.token_secret_ref, contract.DATASET_HUB_TOKEN_FILE_ENV, _DATASET_HUB_TOKEN_FILE),
        (_list_input_claims(spec), contract.CLAIMS_DIR_ENV, CLAIMS_DIR),
    )
    return {name: path for is_mounted, name, path in paths if is_mounted}


def build_signing_environment(spec: RunSpec) -> dict[str, str]:
    """Return the variable with the path of the signing key, if the result is signed."""
    return {contract.SIGNING_KEY_FILE_ENV: f"{SIGNING_DIR}/{contract.SIGNING_KEY}"} if spec.output.signing else {}


def compute_scratch_size(compute: ComputeSpec) -> Quantity:
    """Return what the trainer may write to scratch: its size, or less if the container has a lower limit of storage.

    The limit of a container applies to the disk of the node, not to a volume of a storage class.
    """
    limit = compute.resources.limits.get(EPHEMERAL_STORAGE)
    if limit is None or compute.scratch.storage_class_name:
        return compute.scratch.size
    return min(limit, compute.scratch.size, key=parse_quantity)


def build_storage_request(compute: ComputeSpec) -> dict[str, Quantity]:
    """Return the request for the disk of the node, so that the pod is only scheduled to a node that has the space.

    A volume of a storage class is not on that disk.
    """
    if compute.scratch.storage_class_name:
        return {}
    return {EPHEMERAL_STORAGE: compute_scratch_size(compute)}


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
        environment[contract.CA_BUNDLE_ENV] = f"{CA_DIR}/{CA_FILE}"
    return environment


def build_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return pairs of a volume mount and the source of its volume. All mounts except scratch are read-only."""
    scratch = ({"name": SCRATCH_VOLUME, "mountPath": SCRATCH_DIR}, _build_scratch_source(spec.compute.scratch))
    return [scratch, *_build_access_mounts(spec), *_build_claim_mounts(spec)]


def build_profile_ca_mount(reference: ConfigMapKeyRef) -> tuple[Body, Body]:
    """Return the mount of a compute profile's CA bundle and the source of its volume."""
    return _build_read_only_mount("profile-ca", PROFILE_CA_DIR), _build_ca_source(reference)


def build_storage_mounts(storage: StorageSpec) -> list[tuple[Body, Body]]:
    """Return the mounts of the Secret and the ConfigMap that the access to S3 needs."""
    mounts: list[tuple[Body, Body]] = []
    if storage.credentials_secret_ref:
        source = _build_s3_credentials_source(storage.credentials_secret_ref.name)
        mounts.append((_build_read_only_mount("s3-credentials", S3_CREDENTIALS_DIR), source))
    if storage.ca_config_map_ref:
        source = _build_ca_source(storage.ca_config_map_ref)
        mounts.append((_build_read_only_mount("ca", CA_DIR), source))
    return mounts


def build_hub_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return the mounts of the Secrets with the tokens of the hub."""
    mounts: list[tuple[Body, Body]] = []
    if spec.model.token_secret_ref:
        source = _build_secret_source(spec.model.token_secret_ref.name, contract.HUB_TOKEN_KEY)
        mounts.append((_build_read_only_mount("hub-token", HUB_TOKEN_DIR), source))
    if spec.dataset.token_secret_ref:
        source = _build_secret_source(spec.dataset.token_secret_ref.name, contract.HUB_TOKEN_KEY)
        mounts.append((_build_read_only_mount("dataset-hub-token", DATASET_HUB_TOKEN_DIR), source))
    return mounts


def build_signing_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return the mount of the Secret with the signing key."""
    if spec.output.signing is None:
        return []
    source = _build_secret_source(spec.output.signing.key_secret_ref.name, contract.SIGNING_KEY)
    return [(_build_read_only_mount("signing", SIGNING_DIR), source)]


def build_input_claim_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return one read-only mount for each claim that model and data are read from."""
    return [
        (
            _build_read_only_mount(f"claim-{number}", f"{CLAIMS_DIR}/{name}"),
            _build_claim_source(name, read_only=True),
        )
        for number, name in enumerate(_list_input_claims(spec))
    ]


def _build_access_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return the mounts of the Secrets and the ConfigMap that the spec refers to."""
    mounts = [*build_storage_mounts(spec.storage), *build_hub_mounts(spec), *build_signing_mounts(spec)]
    if spec.tracking and spec.tracking.credentials_secret_ref:
        keys = contract.TRACKING_KEYS[spec.tracking.tool]
        source = _build_optional_secret_source(spec.tracking.credentials_secret_ref.name, keys)
        mounts.append((_build_read_only_mount("tracking", TRACKING_DIR), source))
    return [*mounts, *_build_endpoint_mounts(spec)]


def _build_endpoint_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return the mount of the Secrets of `evaluation.endpoints`: a folder for each endpoint that has one."""
    sources = [
        {
            "secret": {
                "name": endpoint.credentials_secret_ref.name,
                "items": [{"key": contract.ENDPOINT_KEY, "path": f"{endpoint.name}/{contract.ENDPOINT_KEY}"}],
            }
        }
        for endpoint in spec.evaluation.endpoints
        if endpoint.credentials_secret_ref
    ]
    source: Body = {"projected": {"sources": sources, "defaultMode": _FILE_MODE}}
    return [(_build_read_only_mount("endpoints", ENDPOINTS_DIR), source)] if sources else []


def _build_claim_mounts(spec: RunSpec) -> list[tuple[Body, Body]]:
    """Return one mount for each claim, and one for the model cache.

    Volumes are numbered, because names of claims can be longer than theirs. Each claim is one volume, because the
    kubelet does not start a pod with two volumes of one claim: https://github.com/kubernetes/kubernetes/issues/132921
    """
    cache_claim, input_claims = get_cache_claim(spec), _list_input_claims(spec)
    claims = list(dict.fromkeys([*input_claims, *([cache_claim] if cache_claim else [])]))
    volumes = {
        name: (f"claim-{number}", _build_claim_source(name, read_only=name != cache_claim))
        for number, name in enumerate(claims)
    }
    paths = [*((name, f"{CLAIMS_DIR}/{name}") for name in input_claims)]
    paths += [(cache_claim, MODEL_CACHE_DIR)] if cache_claim else []
    return [(_build_read_only_mount(volumes[name][0], path), volumes[name][1]) for name, path in paths]


def _build_claim_source(claim_name: str, *, read_only: bool) -> Body:
    claim: Body = {"claimName": claim_name}
    return {"persistentVolumeClaim": {**claim, "readOnly": True} if read_only else claim}


def get_cache_claim(spec: RunSpec) -> str | None:
    """Return the claim of the model cache, or None if there is none or if the model is on a volume itself."""
    return None if spec.model.uri.startswith(_PVC_SCHEME) else spec.compute.model_cache_claim_name


def _list_input_claims(spec: RunSpec) -> list[str]:
    """Return the names of the claims that model and data are read from, each once, in the order of the spec."""
    uris = [spec.model.uri, *(source.uri for source in list_data_sources(spec))]
    names = [uri.removeprefix(_PVC_SCHEME).partition("/")[0] for uri in uris if uri.startswith(_PVC_SCHEME)]
    return list(dict.fromkeys(names))


def list_data_sources(spec: RunSpec) -> list[DataSource]:
    """Return the sources of the rows for training, validation and test."""
    validation_sources = (spec.dataset.validation and spec.dataset.validation.sources) or []
    test_sources = spec.evaluation.test.sources if spec.evaluation.test else []
    return [*spec.dataset.sources, *validation_sources, *test_sources]


def _build_read_only_mount(name: str, path: str) -> Body:
    return {"name": name, "mountPath": path, "readOnly": True}


def _build_ca_source(reference: ConfigMapKeyRef) -> Body:
    return {"configMap": {"name": reference.name, "items": [{"key": reference.key, "path": CA_FILE}]}}


def _build_secret_source(name: str, key: str) -> Body:
    return {"secret": {"secretName": name, "items": [{"key": key, "path": key}], "defaultMode": _FILE_MODE}}


def _build_optional_secret_source(name: str, keys: Sequence[str]) -> Body:
    """Return a source for those of the keys that the Secret contains. The trainer checks them."""
    items = [{"key": key, "path": key} for key in keys]
    return {"secret": {"secretName": name, "items": items, "optional": True, "defaultMode": _FILE_MODE}}


def _build_scratch_source(scratch: ScratchSpec) -> Body:
    if scratch.storage_class_name is None:
        # The kubelet takes a limit of 0 for none, and an own image could then fill the disk of the node.
        return {"emptyDir": {"sizeLimit": scratch.size if parse_quantity(scratch.size) else "1"}}
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
