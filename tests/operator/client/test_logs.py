"""Tests of logs: pods of a real API server, whose log requests a kubelet of the test answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from tests.support.operator.builders import Body
from tests.support.operator.client_namespace import PROXY_RULES, ClientNamespace
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.stored_results import publish_result
from tests.support.trainer.s3_server import S3Server

from finetune_operator.client import Client, ClientError
from finetune_trainer.records.manifest import compute_digest

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
RUNNING: Body = {"state": {"running": {}}}
ENDED: Body = {"state": {"terminated": {"exitCode": 0}}}


class Kubelet:
    """Answers requests for logs with scripted texts, one for each request of a container."""

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self._texts = texts
        self.queries: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        if not request.path.endswith("/log"):
            return None
        self.queries.append(dict(request.query))
        texts = self._texts[f"{request.path.split('/')[-2]}/{request.query['container']}"]
        return web.Response(body=texts.pop(0).encode())


@pytest.fixture
def proxy(namespace: ClientNamespace) -> Iterator[FaultProxy]:
    namespace.connect_tenant(PROXY_RULES)
    namespace.create_job()
    with FaultProxy(namespace.server) as proxy:
        yield proxy


def _connect(namespace: ClientNamespace, proxy: FaultProxy, kubelet: Kubelet) -> Client:
    proxy.interceptor = kubelet.answer
    return namespace.connect(f"http://127.0.0.1:{proxy.port}")


def _create_pod(namespace: ClientNamespace, name: str, index: int = 0) -> None:
    metadata = {
        "name": name,
        "labels": {"finetune.dev/job": "bot"},
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
    }
    spec = {
        "containers": [{"name": "trainer", "image": "x"}],
        "initContainers": [{"name": "model-cache", "image": "x"}],
    }
    namespace.call("POST", namespace.path("pods"), {"metadata": metadata, "spec": spec})


def _write_states(namespace: ClientNamespace, name: str, **states: Body) -> None:
    """Write the states of a pod's containers, and the phase that follows from them."""
    names = {"cache": ("initContainerStatuses", "model-cache"), "trainer": ("containerStatuses", "trainer")}
    status: Body = {"phase": "Succeeded" if states.get("trainer") is ENDED else "Running"}
    for key, state in states.items():
        field, container = names[key]
        status[field] = [{"name": container, "image": "x", "imageID": "", "ready": True, "restartCount": 0, **state}]
    namespace.call("PATCH", namespace.path("pods", name, "status"), {"status": status})


def _stamp(second: int, text: str) -> str:
    return f"2026-12-01T01:00:{second:02}.000000000Z {text}\n"


def test_logs_are_of_rank_zero_with_lines_as_written(namespace: ClientNamespace, proxy: FaultProxy) -> None:
    for name, index in (("bot-0", 0), ("bot-1", 1)):
        _create_pod(namespace, name, index)
        _write_states(namespace, name, trainer=RUNNING)
    kubelet = Kubelet({"bot-0/trainer": [_stamp(1, "  10% \x1b[31mloss 2.0") + _stamp(2, "")]})
    assert list(_connect(namespace, proxy, kubelet).logs("bot")) == ["  10% \x1b[31mloss 2.0", ""]


def test_logs_model_cache_is_shown_while_it_runs(namespace: ClientNamespace, proxy: FaultProxy) -> None:
    _create_pod(namespace, "bot-0")
    _write_states(namespace, "bot-0", cache=RUNNING)
    kubelet = Kubelet({"bot-0/model-cache": [_stamp(1, "downloading")]})
    assert list(_connect(namespace, proxy, kubelet).logs("bot")) == ["downloading"]


def test_logs_pod_waits_is_client_error(namespace: ClientNamespace, proxy: FaultProxy) -> None:
    _create_pod(namespace, "bot-0")
    with pytest.raises(ClientError, match="pod bot-0 has not started, so it has no log: Pending"):
        list(_connect(namespace, proxy, Kubelet({})).logs("bot"))


def test_logs_follow_resumes_cut_stream_without_repeating(namespace: ClientNamespace, proxy: FaultProxy) -> None:
    _create_pod(namespace, "bot-0")
    _write_states(namespace, "bot-0", trainer=RUNNING)
    first, second, third = (_stamp(second, f"line {second}") for second in (1, 2, 3))
    kubelet = Kubelet({"bot-0/trainer": [first + second, second + third]})
    client = _connect(namespace, proxy, kubelet)
    lines = []
    for line in client.logs("bot", follow=True):
        lines.append(line)
        if line == "line 3":
            _write_states(namespace, "bot-0", trainer=ENDED)
            namespace.write_condition("Complete", "Completed")
    assert lines == ["line 1", "line 2", "line 3"]
    assert kubelet.queries[1]["sinceTime"] == "2026-12-01T01:00:02Z"


def test_logs_follow_continues_with_pod_after_interruption(namespace: ClientNamespace, proxy: FaultProxy) -> None:
    _create_pod(namespace, "bot-a")
    _write_states(namespace, "bot-a", trainer=ENDED)
    kubelet = Kubelet({"bot-a/trainer": [_stamp(1, "first")], "bot-b/trainer": [_stamp(2, "second")]})

    def replace_pod() -> None:
        time.sleep(1.5)  # creation times have seconds
        _create_pod(namespace, "bot-b")
        _write_states(namespace, "bot-b", trainer=ENDED)
        namespace.write_condition("Complete", "Completed")

    thread = threading.Thread(target=replace_pod)
    thread.start()
    assert list(_connect(namespace, proxy, kubelet).logs("bot", follow=True)) == ["first", "second"]
    thread.join()


@pytest.mark.s3
def test_logs_report_and_metrics_without_pods_are_from_store(namespace: ClientNamespace, s3: S3Server) -> None:
    uri = f"s3://results/{namespace.name}"
    publish_result(s3, uri, metrics={"evalLoss": 1.0})
    namespace.create_job(spec={"storage": {"endpoint": "http://127.0.0.1:9"}})
    result = {"adapterURI": uri, "digest": _get_digest(s3, uri), "modelRevision": "main", "metrics": {"evalLoss": 1.0}}
    namespace.write_condition("Complete", "Completed", phase="Complete", result=result)
    client = namespace.connect(endpoint=s3.endpoint)
    assert list(client.logs("bot")) == ["first", "last"]
    assert client.report("bot") == b"<html>report</html>"
    assert client.metrics("bot") == {"evalLoss": 1.0}


def _get_digest(s3: S3Server, uri: str) -> str:
    return compute_digest(s3.get(f"{uri}/manifest.json"))
