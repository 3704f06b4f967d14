"""Tests of submitting, waiting and reading with a real API server."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web
from tests.support.operator.builders import build_manifest
from tests.support.operator.client_namespace import PROXY_RULES, VIEW_RULES, ClientNamespace, write_client_kubeconfig
from tests.support.operator.fault_proxy import FaultProxy

from finetune_operator.client import (
    Client,
    ClusterUnavailable,
    Forbidden,
    InvalidManifest,
    LoginRequired,
    ObjectExists,
    ObjectNotFound,
    OperatorNotInstalled,
    WaitTimeout,
    summarize_job,
    wait_condition_of,
)
from finetune_operator.client.api_server import ApiServer, Collection, Request
from finetune_operator.client.connection import connect

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
MANIFEST = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: %s}
spec:
  model: {uri: hf://org/name}
  dataset: {sources: [{uri: s3://bucket/data.jsonl}]}
  training: {epochs: 1, learningRate: 2e-4}
  output: {uri: "s3://bucket/adapters/{name}"}
"""


def _later(seconds: float, *actions: object) -> None:
    def run() -> None:
        for action in actions:
            time.sleep(seconds)
            action()  # type: ignore[operator]

    threading.Thread(target=run, daemon=True).start()


def test_submit_file_creates_run_with_yaml_1_2_numbers(namespace: ClientNamespace, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(MANIFEST % "bot")
    job = namespace.connect().submit(path)
    assert (job.metadata.name, job.metadata.namespace) == ("bot", namespace.name)
    assert namespace.connect().jobs.get("bot").spec.training.learning_rate == 2e-4


def test_submit_dry_run_creates_nothing(namespace: ClientNamespace) -> None:
    client = namespace.connect()
    client.submit(build_manifest(namespace=namespace.name), dry_run=True)
    assert not client.jobs.list()


def test_submit_existing_name_is_object_exists(namespace: ClientNamespace) -> None:
    client = namespace.connect()
    client.submit(build_manifest(namespace=namespace.name))
    with pytest.raises(ObjectExists, match=f"FineTuneJob bot in namespace {namespace.name} exists"):
        client.submit(build_manifest(namespace=namespace.name))


def test_submit_other_namespace_is_refused(namespace: ClientNamespace) -> None:
    with pytest.raises(InvalidManifest, match=r"metadata.namespace is 'elsewhere'"):
        namespace.connect().submit(build_manifest(namespace="elsewhere"))


def test_submit_several_documents_names_them(namespace: ClientNamespace, tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(f"{MANIFEST % 'one'}---\n{MANIFEST % 'two'}")
    with pytest.raises(InvalidManifest, match=r"2 YAML documents \(FineTuneJob one; FineTuneJob two\)"):
        namespace.connect().submit(path)


def test_submit_unknown_field_is_refused_by_server(namespace: ClientNamespace) -> None:
    manifest = build_manifest(namespace=namespace.name, spec={"training": {"learningRat": 1}})
    with pytest.raises(InvalidManifest, match=r"spec\.training\.learningRat"):
        namespace.connect().submit(manifest)


def test_submit_broken_rule_lists_problems(namespace: ClientNamespace) -> None:
    manifest = build_manifest(namespace=namespace.name, spec={"output": {"uri": "bucket/adapters"}})
    with pytest.raises(InvalidManifest) as caught:
        namespace.connect().submit(manifest)
    assert any("s3://bucket/prefix" in problem for problem in caught.value.problems)


def test_wait_returns_run_when_complete(namespace: ClientNamespace) -> None:
    namespace.create_job()
    phases, client = list[str](), namespace.connect()
    _later(
        0.5,
        lambda: namespace.write_status({"phase": "Running"}),
        lambda: namespace.write_condition("Complete", "Completed", phase="Complete"),
    )
    job = client.wait("bot", timeout_seconds=30, on_change=lambda job: phases.append(_phase(job)))
    assert wait_condition_of(job) == "Complete"
    assert phases == ["Pending", "Running", "Complete"]


def _phase(job: object) -> str:
    return summarize_job(job).phase  # type: ignore[arg-type]


def test_wait_resumed_run_ignores_suspension_of_older_generation(namespace: ClientNamespace) -> None:
    namespace.create_job(spec={"suspend": True})
    namespace.write_condition("Suspended", "Suspended")
    client = namespace.connect()
    assert wait_condition_of(client.wait("bot", timeout_seconds=5)) == "Suspended"
    client.resume("bot")
    with pytest.raises(WaitTimeout, match="bot has not ended after 1 seconds"):
        client.wait("bot", timeout_seconds=1)


def test_resume_removes_reached_step(namespace: ClientNamespace) -> None:
    namespace.create_job(spec={"suspendAtStep": 10})
    namespace.write_condition("Suspended", "StepReached", stepResult={"step": 10, "evalLoss": 1.0})
    job = namespace.connect().resume("bot")
    assert job.spec.suspend_at_step is None


def test_resume_keeps_step_that_is_not_reached(namespace: ClientNamespace) -> None:
    namespace.create_job(spec={"suspendAtStep": 20, "suspend": True})
    namespace.write_status({"stepResult": {"step": 10, "evalLoss": 1.0}})
    job = namespace.connect().resume("bot")
    assert (job.spec.suspend_at_step, job.spec.suspend) == (20, False)


def test_wait_deleted_run_is_not_found(namespace: ClientNamespace) -> None:
    namespace.create_job()
    _later(0.5, lambda: namespace.call("DELETE", namespace.path("finetunejobs", "bot")))
    with pytest.raises(ObjectNotFound, match="there is no FineTuneJob bot"):
        namespace.connect().wait("bot", timeout_seconds=30)


def test_wait_survives_server_errors_and_cut_watches(namespace: ClientNamespace) -> None:
    namespace.create_job()
    namespace.connect_tenant(PROXY_RULES)
    with FaultProxy(namespace.server) as proxy:
        client = namespace.connect(f"http://127.0.0.1:{proxy.port}")
        watches = 0

        async def cut_watch(request: web.Request) -> web.StreamResponse | None:
            nonlocal watches
            if "watch" not in request.query:
                return None
            watches += 1
            if watches == 1:
                proxy.fail_next("GET", "/finetunejobs/bot", 503)
                return web.Response(text='{"type": "MODIF', content_type="application/json")
            return None

        proxy.interceptor = cut_watch
        _later(2.5, lambda: namespace.write_condition("Failed", "DataNotFound"))
        assert wait_condition_of(client.wait("bot", timeout_seconds=30)) == "Failed"
        assert watches >= 2
        assert not proxy.faults


def test_wait_expired_watch_lists_again(namespace: ClientNamespace) -> None:
    namespace.create_job()
    namespace.connect_tenant(PROXY_RULES)
    with FaultProxy(namespace.server) as proxy:
        answers = [{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}]

        async def expire(request: web.Request) -> web.StreamResponse | None:
            if "watch" in request.query and answers:
                return web.Response(text=json.dumps(answers.pop()) + "\n")
            return None

        proxy.interceptor = expire
        _later(1, lambda: namespace.write_condition("Cancelled", "Cancelled"))
        job = namespace.connect(f"http://127.0.0.1:{proxy.port}").wait("bot", timeout_seconds=30)
        assert wait_condition_of(job) == "Cancelled"
        assert not answers


def test_viewer_submit_is_forbidden_with_role(namespace: ClientNamespace) -> None:
    client = namespace.connect_tenant(VIEW_RULES)
    assert list(client.jobs.list()) == []
    with pytest.raises(Forbidden) as caught:
        client.submit(build_manifest(namespace=namespace.name))
    assert "you may not create finetunejobs in namespace" in str(caught.value)
    assert "ClusterRole finetune-operator-edit" in str(caught.value)


def test_viewer_events_are_forbidden_with_builtin_role(namespace: ClientNamespace) -> None:
    with pytest.raises(Forbidden, match=r"may not list events in namespace .* ClusterRole view has this right"):
        namespace.connect_tenant(VIEW_RULES).events("bot")


def test_events_are_ordered_and_of_the_object_alone(namespace: ClientNamespace) -> None:
    for index, (name, time_text) in enumerate([("bot", "2026-12-01T02:00:00Z"), ("bot", "2026-12-01T01:00:00Z"),
                                              ("other", "2026-12-01T01:30:00Z")]):  # fmt: skip
        subject = {"kind": "FineTuneJob", "name": name, "namespace": namespace.name}
        event = {"metadata": {"name": f"e{index}"}, "involvedObject": subject, "reason": f"R{index}", "type": "Normal",
                 "message": "m", "lastTimestamp": time_text, "count": 2}  # fmt: skip
        namespace.call("POST", namespace.path("events"), event)
    assert [(event.reason, event.count) for event in namespace.connect().events("bot")] == [("R1", 2), ("R0", 2)]


def test_rejected_token_is_login_required(namespace: ClientNamespace) -> None:
    with pytest.raises(LoginRequired, match="rejects the credentials of the kubeconfig; log in again"):
        namespace.connect(token="expired").jobs.list()


def test_unknown_context_names_the_others(namespace: ClientNamespace, tmp_path: Path) -> None:
    namespace.connect()
    path = next(tmp_path.glob("kubeconfig-*"))
    with pytest.raises(ClusterUnavailable, match="no context 'prod'; it has test, other"):
        Client(kubeconfig=path, context="prod")


def test_unreachable_server_is_reported_in_seconds(namespace: ClientNamespace, tmp_path: Path) -> None:
    namespace.connect()
    client = Client(kubeconfig=next(tmp_path.glob("kubeconfig-*")), context="other")
    started = time.monotonic()
    with pytest.raises(ClusterUnavailable, match=r"https://127.0.0.1:9 does not respond: .*refused"):
        client.wait("bot")
    assert time.monotonic() - started < 5


def test_list_without_crd_is_operator_not_installed(namespace: ClientNamespace, tmp_path: Path) -> None:
    namespace.connect()
    server = ApiServer(connect(kubeconfig=next(tmp_path.glob("kubeconfig-*"))).api_client)
    with pytest.raises(OperatorNotInstalled, match="does not know finetunejobs: install finetune-operator"):
        server.send(Request("list", Collection("/apis/absent.dev/v1", "finetunejobs", namespace.name)))


def test_credential_plugin_fails_is_login_required(tmp_path: Path) -> None:
    path = write_client_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:9", "team", "")
    plugin = '{exec: {apiVersion: client.authentication.k8s.io/v1, command: "false", interactiveMode: Never}}'
    path.write_text(path.read_text().replace('{token: ""}', plugin))
    with pytest.raises(LoginRequired, match="provides no credentials for user test of context test; log in"):
        Client(kubeconfig=path)


def test_kubeconfig_missing_is_cluster_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnavailable, match=r"kubeconfig .*absent: there is no such file.*; set KUBECONFIG"):
        Client(kubeconfig=tmp_path / "absent")


def test_server_without_api_is_cluster_unavailable(namespace: ClientNamespace) -> None:
    with FaultProxy(namespace.server) as proxy:

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(text="<html>Welcome</html>", content_type="text/html")

        proxy.interceptor = answer
        with pytest.raises(ClusterUnavailable, match="is not that of an API server"):
            namespace.connect(f"http://127.0.0.1:{proxy.port}").jobs.list()


def test_logs_without_pod_and_stored_log_name_the_phase(namespace: ClientNamespace) -> None:
    namespace.create_job()
    with pytest.raises(Exception, match="bot has no pod and no stored log: its phase is Pending"):
        list(namespace.connect().logs("bot"))


def test_metrics_running_returns_last_losses(namespace: ClientNamespace) -> None:
    namespace.create_job()
    progress = {"stage": "Training", "loss": 1.5, "lastUpdateTime": "2026-12-01T00:00:00Z", "percentage": 10}
    namespace.write_status({"progress": progress})
    assert namespace.connect().metrics("bot") == {"loss": 1.5}
