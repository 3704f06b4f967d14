"""Tests of what the demo prints and of the objects that it creates."""

from pathlib import Path
from typing import Any

import pytest

from local_cluster import console, demo, follow, notice, questions

RUNNING = {
    "phase": "Running",
    "progress": {"stage": "Training", "percentage": 40, "step": 12, "totalSteps": 30, "loss": 1.5},
}


@pytest.mark.parametrize(
    ("status", "text", "finished"),
    [
        ({}, "Pending", False),
        (RUNNING, "Running  40 %  Training  step 12/30  loss 1.5", False),
        ({"phase": "Running", "progress": {"stage": "Downloading"}}, "Running  Downloading", False),
        ({"phase": "Complete"}, "Complete", True),
        ({"phase": "Failed"}, "Failed", True),
    ],
)
def test_summarize_status_is_one_line(status: dict[str, Any], text: str, finished: bool) -> None:
    assert follow.summarize_status(status) == text
    assert follow.is_finished(status) is finished


def test_failure_message_failed_status_is_condition_message() -> None:
    conditions = [
        {"type": "Complete", "status": "False", "message": "not this"},
        {"type": "Failed", "status": "True", "message": "the bucket is not there"},
    ]
    assert follow.get_failure_message({"conditions": conditions}) == "the bucket is not there"
    assert follow.get_failure_message({}) == "its status has no condition Failed"


def test_demo_sample_contains_replaced_endpoint() -> None:
    assert demo.SAMPLE.read_text().count(demo.SAMPLE_ENDPOINT) >= 1


def test_questions_pod_is_restricted() -> None:
    pod = questions.build_pod(
        "ask", questions.build_generate_arguments("s3://models/base/", "s3://adapters/some", "http://s3")
    )
    (container,) = pod["spec"]["containers"]
    assert container["args"][0] == "generate"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (754.6, "12 min 35 s")])
def test_duration_seconds_are_formatted(seconds: float, text: str) -> None:
    assert console.format_duration(seconds) == text


def test_answers_are_parsed_from_trainer_log() -> None:
    log = 'INFO downloading\n{"prompt": "How?", "base": "Well,\\n you", "adapter": "So."}\nINFO done\n'
    assert questions.parse_answers(log) == questions.ModelAnswers(base="Well, you", tuned="So.")


def test_next_steps_name_report_and_complete_commands() -> None:
    text = demo.render_next_steps(Path("/cache/demo/report.html"), Path("/bin/kubectl"), Path("/c/admin.kubeconfig"))
    assert "/cache/demo/report.html\n" in text
    assert "  /bin/kubectl --kubeconfig /c/admin.kubeconfig get ftj\n" in text
    assert "  /bin/kubectl --kubeconfig /c/admin.kubeconfig logs job/quickstart\n" in text


def test_notice_names_packages_folder_and_their_removal() -> None:
    text = notice.render_notice(["buildah", "runc"], Path("/home/me/.cache/finetune-operator"))
    assert "installs buildah runc with apt-get" in text
    assert "apt-get purge --autoremove buildah runc\n" in text
    assert "make demo-down && rm -r /home/me/.cache/finetune-operator\n" in text
    assert "ftj-demo" in text


def test_notice_nothing_missing_installs_no_package() -> None:
    assert "apt-get" not in notice.render_notice([], Path("/cache"))


def test_notice_and_demo_name_the_same_cluster() -> None:
    assert notice.CLUSTER == demo.CLUSTER
