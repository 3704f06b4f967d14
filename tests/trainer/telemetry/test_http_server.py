"""Tests of the HTTP server that reports the progress of a run."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from finetune_operator.controller.finetunejob.progress_reader import ProgressReader
from finetune_trainer.contract import CacheResult, Stage
from finetune_trainer.telemetry import http_server
from finetune_trainer.telemetry.progress import ProgressReporter


class TestServer:
    """Tests of the requests that the operator sends."""

    @pytest.fixture
    def progress(self, monkeypatch: pytest.MonkeyPatch) -> ProgressReporter:
        monkeypatch.setenv(http_server.PORT_ENV, "0")
        return ProgressReporter()

    def test_http_server_serves_progress(self, progress: ProgressReporter) -> None:
        port = http_server.start_server(progress)
        progress.update(stage=Stage.TRAINING, step=3, total_steps=10, percentage=30)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress") as answer:
            content = json.load(answer)
        assert {key: content[key] for key in ("stage", "step", "totalSteps", "percentage")} == {
            "stage": "Training",
            "step": 3,
            "totalSteps": 10,
            "percentage": 30,
        }
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other")
        with error.value:
            assert error.value.code == 404

    def test_http_server_serves_prometheus_metrics(self, progress: ProgressReporter) -> None:
        port = http_server.start_server(progress)
        saved = {"last_checkpoint_step": 2, "last_checkpoint_time": "1970-01-01T00:01:00Z"}
        progress.update(stage=Stage.TRAINING, step=3, total_steps=10, percentage=30, loss=1.25, **saved)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        values = {
            name: family.samples[0].value for name, family in families.items() if name != "finetune_trainer_stage"
        }
        assert values.pop("finetune_trainer_last_update_timestamp_seconds") > 1e9
        assert values == {
            "finetune_trainer_progress_ratio": 0.3,
            "finetune_trainer_step": 3,
            "finetune_trainer_steps": 10,
            "finetune_trainer_loss": 1.25,
            "finetune_trainer_last_checkpoint_step": 2,
            "finetune_trainer_last_checkpoint_timestamp_seconds": 60,
        }  # the evaluation loss and others are not known: absent, not zero
        stages = {sample.labels["stage"]: sample.value for sample in families["finetune_trainer_stage"].samples}
        assert {stage for stage, value in stages.items() if value} == {"Training"}

    def test_http_server_serves_result_of_model_cache(self, progress: ProgressReporter) -> None:
        port = http_server.start_server(progress)
        progress.model_cache = CacheResult.FILLED
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert 'finetune_trainer_model_cache{result="Filled"} 1.0' in answer.read().decode()

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_http_server_listens_on_ipv4_and_ipv6(self, progress: ProgressReporter, host: str) -> None:
        port = http_server.start_server(progress)
        assert port
        assert await ProgressReader(port, 5).read(host) == progress.get_latest()

    async def test_http_server_without_ipv6_listens_on_ipv4(
        self, progress: ProgressReporter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
        port = http_server.start_server(progress)
        assert port
        assert await ProgressReader(port, 5).read("127.0.0.1")

    def test_http_server_taken_port_is_not_fatal(
        self, progress: ProgressReporter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("", 0)) as taken:
            monkeypatch.setenv(http_server.PORT_ENV, str(taken.getsockname()[1]))
            assert http_server.start_server(progress) is None
