"""`python -m finetune_operator.selftest`: check an installation from inside the cluster. `helm test` runs it in a pod.

It changes nothing: FineTuneJobs are only created as a dry run. It needs no permissions on the cluster, because every
user may read the OpenAPI document of the API server.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from finetune_operator.api import API_VERSION, KIND, PLURAL
from finetune_operator.codegen.crd import DEFINITIONS, KindDefinition, Schema, build_root_schema

_SECONDS_BETWEEN_TRIES = 2
_REQUEST_TIMEOUT = 10
_FINETUNEJOB: Schema = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "finetune-operator-selftest"},
    "spec": {
        "model": {"uri": "s3://finetune-operator-selftest/model"},
        "dataset": {"sources": [{"uri": "s3://finetune-operator-selftest/train.jsonl"}]},
        "training": {"epochs": 1},
        "output": {"uri": "s3://finetune-operator-selftest/adapter"},
    },
}


class Installation(NamedTuple):
    """The names of the objects of an installation."""

    namespace: str
    deployment: str
    lease: str


class CheckFailed(Exception):
    """A check found a defect of the installation. The message says what to do."""


class ApiServer:
    """Sends requests to the API server with the credentials of the pod, or with those of the kubeconfig."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def call(self, method: str, path: str, query: dict[str, str] | None = None, body: Schema | None = None) -> Schema:
        """Return the answer. Raises `ApiException` for an error, and `CheckFailed` for an answer of somebody else."""
        request = self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._api.call_api(*request, _request_timeout=_REQUEST_TIMEOUT)
        data = response.read()
        if not 200 <= response.status <= 299:
            raise client.ApiException(status=response.status, reason=response.reason, body=data.decode())
        return _parse_answer(data)


def _parse_answer(data: bytes) -> Schema:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        start = data[:200].decode(errors="replace")
        raise CheckFailed(f"the answer is not from the API server; check proxies (extraEnv): {start}")
    return answer


def check_crds(server: ApiServer, installation: Installation) -> str:
    """Check that the CRDs are served and have all fields that this version of the operator uses."""
    document = server.call("GET", f"/openapi/v3/apis/{API_VERSION}")
    schemas: dict[str, Schema] = document.get("components", {}).get("schemas", {})
    counts = {definition.kind: _check_fields(definition, schemas) for definition in DEFINITIONS}
    return f"the CRDs have all fields of this version: {', '.join(f'{kind} {n}' for kind, n in counts.items())}"


def _check_fields(definition: KindDefinition, schemas: dict[str, Schema]) -> int:
    """Return the number of fields of a kind. Raises `CheckFailed` if one is not served."""
    served = next((schema for name, schema in schemas.items() if name.endswith(f".{definition.kind}")), {})
    own_fields, served_fields = set(iterate_fields(build_root_schema(definition))), set(iterate_fields(served))
    if missing := sorted(own_fields - served_fields):
        raise CheckFailed(
            f"the CRD of {definition.kind} in the cluster is older than the operator: it lacks {missing[0]} "
            f"(fields: {len(missing)}). Set crds.enabled=true, or apply manifests/crd.yaml of this version"
        )
    return len(own_fields)


def iterate_fields(schema: Schema, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields in spec and status."""
    for name, field in schema.get("properties", {}).items():
        if path or name in ("spec", "status"):
            yield path + name
            yield from iterate_fields(field.get("items", field), f"{path}{name}.")


def check_deployment(server: ApiServer, installation: Installation) -> str:
    """Check that a replica is ready. The kubelet asks `/readyz` for that."""
    path = f"/apis/apps/v1/namespaces/{installation.namespace}/deployments/{installation.deployment}"
    replicas = server.call("GET", path).get("status", {}).get("readyReplicas", 0)
    if not replicas:
        raise CheckFailed(
            f"no replica is ready: see kubectl -n {installation.namespace} describe deployment "
            f"{installation.deployment}, and the log of its pods"
        )
    return f"ready replicas: {replicas}"


def check_leader(server: ApiServer, installation: Installation) -> str:
    """Check that a replica leads."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{installation.namespace}/leases/{installation.lease}"
    holder = server.call("GET", path).get("spec", {}).get("holderIdentity")
    if not holder:
        raise CheckFailed(f"no replica holds the Lease {installation.lease}: the log of the operator states why")
    return f"leader: {holder}"


def check_valid_finetunejob(server: ApiServer, installation: Installation) -> str:
    """Check that the API server and its admission webhooks accept a minimal FineTuneJob."""
    _create_in_dry_run(server, installation.namespace, _FINETUNEJOB)
    return "a valid FineTuneJob is accepted"


def check_invalid_finetunejob(server: ApiServer, installation: Installation) -> str:
    """Check that the API server validates FineTuneJobs."""
    invalid = {**_FINETUNEJOB, "spec": {**_FINETUNEJOB["spec"], "training": {"epochs": -1}}}
    try:
        _create_in_dry_run(server, installation.namespace, invalid)
    except client.ApiException as error:
        if error.status == 422:
            return "an invalid FineTuneJob is refused"
        raise
    raise CheckFailed("the API server accepts training.epochs -1: the CRD has no schema; apply that of this version")


def _create_in_dry_run(server: ApiServer, namespace: str, body: Schema) -> None:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    server.call("POST", f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}", query, body)


Check = Callable[[ApiServer, Installation], str]
CHECKS: tuple[Check, ...] = (
    check_crds,
    check_deployment,
    check_leader,
    check_valid_finetunejob,
    check_invalid_finetunejob,
)


def run_checks(server: ApiServer, installation: Installation, timeout: float) -> bool:
    """Run all checks, print their results, and return whether they pass. They are repeated for `timeout` seconds."""
    deadline = time.monotonic() + timeout
    results = [_run_check(check, server, installation, deadline) for check in CHECKS]
    return all(results)


def _run_check(check: Check, server: ApiServer, installation: Installation, deadline: float) -> bool:
    while True:
        try:
            result = check(server, installation)
        except (CheckFailed, client.ApiException, HTTPError) as error:
            if time.monotonic() >= deadline:
                _print_line(f"FAILED: {check.__name__}: {_describe(error)}")
                return False
        else:
            _print_line(f"ok: {result}")
            return True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _describe(error: Exception) -> str:
    if isinstance(error, client.ApiException):
        return f"the API server answered {error.status}: {error.body}"
    return str(error)


def main(arguments: list[str]) -> int:
    """Run all checks. Return 0 if they pass, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m finetune_operator.selftest", description=__doc__)
    for name in Installation._fields:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--timeout", type=float, default=60, help="seconds until failing checks are not repeated")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    timeout = options.pop("timeout")
    _load_credentials()
    with client.ApiClient() as api:
        return 0 if run_checks(ApiServer(api), Installation(**options), timeout) else 1


def _load_credentials() -> None:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
