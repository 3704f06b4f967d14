"""The CA bundle of a compute profile: the trainer reaches the hub and S3 with the variables that the operator sets."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.operator.builders import build_finetunejob
from tests.support.trainer.hub_server import HubDatasets, HubHandler
from tests.support.trainer.private_authority import PrivateAuthority, create_authority
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.profiles import ChosenProfile, Profile
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

pytestmark = pytest.mark.s3

_CLIENTS = """
import sys
from pathlib import Path
import obstore, requests
from finetune_trainer.contract import Storage
from finetune_trainer.inputs import hub
from finetune_trainer.storage import S3

hub_url, s3_url, folder = sys.argv[1:]
bucket = S3(Storage(endpoint=s3_url)).bucket("data")
clients = {
    "hub": lambda: hub.download_snapshot(hub.resolve_snapshot("hf://org/model", "main"), Path(folder)),
    "tracker": lambda: requests.get(f"{hub_url}/api/models/org/model", timeout=10).raise_for_status(),
    "boto3": lambda: bucket.client.list_objects_v2(Bucket="data"),
    "obstore": lambda: obstore.put(bucket.store, "key", b"content"),
}
for name, call in clients.items():
    try:
        call()
    except Exception as error:
        sys.stderr.write(f"{name}: {error}\\n")
    else:
        print(name)
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> PrivateAuthority:
    return create_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_s3(authority: PrivateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from serve(tmp_path_factory.mktemp("s3"), authority)


@pytest.fixture(scope="module")
def tls_hub(authority: PrivateAuthority) -> Iterator[str]:
    HubHandler.requests, HubHandler.datasets = [], HubDatasets()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def _build_environment(profile: Profile, bundle: Path) -> dict[str, str]:
    """Return the variables of a trainer with this profile, with the path of the bundle outside of a pod."""
    job = build_job(FineTuneJob.model_validate(build_finetunejob()), Settings(), ChosenProfile("a", profile))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    path = "/etc/finetune/profile-ca/ca.crt"
    return {variable["name"]: str(bundle) for variable in container["env"] if variable["value"] == path}


def test_profile_bundle_is_trusted_by_every_client(
    authority: PrivateAuthority, tls_s3: S3Server, tls_hub: str, tmp_path: Path
) -> None:
    variables = _build_environment(Profile.model_validate({"caConfigMapRef": {"name": "ca"}}), authority.bundle)
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "HF_ENDPOINT": tls_hub}
    command = [sys.executable, "-c", _CLIENTS, tls_hub, tls_s3.endpoint, tmp_path]
    environment = {**os.environ, **keys, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    trusting = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    assert trusting.stdout.split() == ["hub", "tracker", "boto3", "obstore"], trusting.stderr
    wary = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert wary.stdout.split() == []  # it is the variables that make the difference
    assert wary.stderr.lower().count("certificate") >= 4
