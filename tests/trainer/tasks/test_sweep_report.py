"""The report of a sweep: what the task writes to a real S3 server, and what it concludes from the files of trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lxml import html
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy
from tests.support.trainer.page_checks import parse_page, visible_text
from tests.support.trainer.sweep_trials import (
    LEARNING_RATES,
    draw_row_losses,
    make_task,
    make_trial,
    publish_trial,
)

from finetune_trainer.contract import Reason, StepResult, SweepReportTask, TrialRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3
from finetune_trainer.tasks.sweep_report import write_report

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

VALUES = (1.30, 1.21, 1.32)


@pytest.fixture(scope="module")
def store(s3_server: S3Server) -> S3:
    """A connection of all tests. It is made when it is first used, with the credentials of that test."""
    return S3(s3_server.storage)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"s3://results/{tmp_path.name}"


def publish_sweep(s3: S3Server, output: str, noise: float = 0.02, rows: int = 40) -> SweepReportTask:
    """Publish three trials, of which the second is the best by 0.09."""
    trials = [
        publish_trial(
            s3,
            output,
            make_trial(number, value, rate),
            draw_row_losses(value, rows, noise, seed=number),
            testLoss=value + 0.1,
        )
        for number, (value, rate) in enumerate(zip(VALUES, LEARNING_RATES, strict=True), 1)
    ]
    return make_task(output, trials, [2, 1, 3])


def read_json(s3: S3Server, output: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(s3.get(f"{output}/{name}"))
    return content


def read_page(s3: S3Server, output: str) -> html.HtmlElement:
    return parse_page(s3.get(f"{output}/report.html").decode())


def replace_trial(task: SweepReportTask, number: int, **fields: Any) -> SweepReportTask:
    trials = [trial.model_copy(update=fields) if trial.configuration == number else trial for trial in task.trials]
    return task.model_copy(update={"trials": trials})


def test_write_report_clearly_better_names_the_best_with_its_evidence(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    report = write_report(store, task)
    assert report.verdict == "Better"
    assert report.report_uri == f"{output}/report.html"
    assert report.test == {"testLoss": pytest.approx(1.31)}
    assert report.change
    assert report.change.change == pytest.approx(-0.09)
    assert report.change.high is not None
    assert report.change.high < 0
    assert report.message.startswith(
        "lr-2 (learningRate 0.0003) has evalLoss 1.210, lr-1 (learningRate 0.0001) has 1.300: "
    )
    assert "on 40 common rows: lr-2 is better." in report.message


def test_write_report_writes_all_files(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    report = write_report(store, task)
    assert read_json(s3, output, "best.json") == {
        "configuration": 2,
        "parameters": {"learningRate": 3e-4},
        "run": "lr-2",
        "adapterURI": f"{output}/lr-2",
        "digest": task.trials[1].digest,
        "metric": "evalLoss",
        "value": 1.21,
    }
    sweep = read_json(s3, output, "sweep.json")
    assert (sweep["verdict"], sweep["message"]) == ("Better", report.message)
    assert sweep["compared"] == ["lr-2", "lr-1"]
    assert [(each["configuration"], each["rank"]) for each in sweep["configurations"]] == [(2, 1), (1, 2), (3, 3)]
    assert (sweep["configurations"][0]["low"], sweep["configurations"][0]["high"]) == (1.16, 1.26)
    assert "problems" not in sweep or sweep["problems"] == []
    text = visible_text(read_page(s3, output))
    assert "The best: learningRate 0.0003" in text
    assert "The validation data chose the best configuration" in text
    assert "testLoss 1.310" in text
    assert "1 0.0003 1.210 1.160 to 1.260 1,002 lr-2" in text


def test_write_report_repeated_writes_the_same_bytes(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    names = ("sweep.json", "best.json", "report.html")
    write_report(store, task)
    first = [s3.get(f"{output}/{name}") for name in names]
    write_report(store, task)
    assert [s3.get(f"{output}/{name}") for name in names] == first


def test_write_report_interrupted_leaves_no_page_of_a_best_that_is_not_written(
    s3: S3Server, output: str, proxy: FaultyProxy
) -> None:
    task = publish_sweep(s3, output)
    write_report(S3(s3.storage), task)
    assert [path.rpartition("/")[2] for path in proxy.written_paths] == ["sweep.json", "best.json", "report.html"]


def test_write_report_noise_larger_than_difference_is_inconclusive(s3: S3Server, store: S3, output: str) -> None:
    report = write_report(store, publish_sweep(s3, output, noise=0.6))
    assert report.verdict == "Inconclusive"
    assert "the difference may be chance" in report.message
    assert report.change
    assert report.change.low is not None
    assert report.change.high is not None
    assert report.change.low < 0 < report.change.high
    assert "Not significantly better than the second" in visible_text(read_page(s3, output))


@pytest.mark.parametrize(("rows", "verdict", "text"), [(10, "Better", "p = 0."), (5, "Inconclusive", "too few rows")])
def test_write_report_few_rows_are_decided_by_the_exact_test(
    s3: S3Server, store: S3, output: str, rows: int, verdict: str, text: str
) -> None:
    report = write_report(store, publish_sweep(s3, output, rows=rows))
    assert report.verdict == verdict
    assert text in report.message
    assert report.change
    assert report.change.p_value is not None


@pytest.mark.parametrize("number", [1, 2])
def test_write_report_without_rows_is_not_compared_and_says_so(
    s3: S3Server, store: S3, output: str, number: int
) -> None:
    task = publish_sweep(s3, output)
    s3.client.delete_object(
        Bucket="results", Key=f"{output.removeprefix('s3://results/')}/lr-{number}/evaluation.jsonl"
    )
    report = write_report(store, task)
    assert report.verdict == "NotCompared"
    assert report.change is None
    assert f"{output}/lr-{number}/evaluation.jsonl does not exist" in report.message
    assert report.message in visible_text(read_page(s3, output))
    assert read_json(s3, output, "best.json")["run"] == "lr-2"
    assert report.test


def test_write_report_row_that_is_not_finite_is_not_compared(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    line = '{"row": "sha256:%064x", "scores": {"tuned": {"lossSum": NaN, "lossTokens": 20}}}'
    s3.put(f"{output}/lr-1/evaluation.jsonl", "\n".join(line % index for index in range(30)).encode())
    report = write_report(store, task)
    assert report.verdict == "NotCompared"
    assert report.message.endswith("lossSum of a row is not finite.")


@pytest.mark.parametrize("name", ["manifest.json", "evaluation.json", "evaluation.jsonl"])
def test_write_report_with_broken_file_still_writes_the_page(s3: S3Server, store: S3, output: str, name: str) -> None:
    task = publish_sweep(s3, output)
    s3.put(f"{output}/lr-2/{name}", b'{"row": ')
    write_report(store, replace_trial(task, 2, digest=None))
    assert f"{output}/lr-2/{name} is not valid" in visible_text(read_page(s3, output))
    assert read_json(s3, output, "best.json")["run"] == "lr-2"


def test_write_report_result_of_another_run_is_not_compared(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    publish_trial(s3, output, task.trials[0].model_copy(update={"value": 0.5}), [0.5] * 40)
    report = write_report(store, task)
    assert report.verdict == "NotCompared"
    assert f"{output}/lr-1/manifest.json is no longer that of lr-1" in report.message
    sweep = read_json(s3, output, "sweep.json")
    assert sweep["problems"] == [f"{output}/lr-1/evaluation.json is no longer that of lr-1"]
    assert "low" not in sweep["configurations"][1]


def test_write_report_seed_that_contradicts_the_mean_is_inconclusive(s3: S3Server, store: S3, output: str) -> None:
    values = {(1, 42): 1.3, (2, 42): 1.2, (1, 43): 1.0, (2, 43): 1.2}
    trials = [
        publish_trial(
            s3,
            output,
            make_trial(number, value, configuration=configuration, seed=seed),
            draw_row_losses(value, 40, 0.02, seed=number),
        )
        for number, ((configuration, seed), value) in enumerate(values.items(), 1)
    ]
    report = write_report(store, make_task(output, trials, [1, 2]))
    assert report.verdict == "Inconclusive"
    assert "this seed of lr-2 is better, unlike the mean of all seeds" in report.message


def test_write_report_chrf_is_compared_by_the_mean_of_the_rows(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    for number, score in ((1, 40), (2, 50)):
        line = '{"row": "%d", "scores": {"tuned": {"chrf": %d}}}'
        rows = [line % (index, score + index % 5) for index in range(30)]
        s3.put(f"{output}/lr-{number}/evaluation.jsonl", "\n".join(rows).encode())
    report = write_report(store, task.model_copy(update={"objective": "chrf"}))
    assert report.change
    assert (report.verdict, report.change.baseline, report.change.value) == ("Better", 42, 52)
    assert "chrf is compared by the mean of the rows' scores" in report.message


def test_write_report_denied_file_is_a_problem_and_an_unreachable_store_is_an_error(
    s3: S3Server, output: str, proxy: FaultyProxy
) -> None:
    task = publish_sweep(s3, output)
    proxy.faults.append(Fault("403", "GET", "/lr-3/evaluation.json"))
    write_report(S3(s3.storage), task)
    (problem,) = read_json(s3, output, "sweep.json")["problems"]
    assert problem.startswith(f"{output}/lr-3/evaluation.json at ")
    assert "lack the permission" in problem
    proxy.faults.append(Fault("503", "GET", "/lr-3/evaluation.json", times=100))
    with pytest.raises(TrainerError) as raised:
        write_report(S3(s3.storage), task)
    assert raised.value.reason is Reason.STORAGE_UNREACHABLE


def test_write_report_seeds_show_their_spread(s3: S3Server, store: S3, output: str) -> None:
    def publish(number: int, configuration: int, seed: int, value: float) -> TrialRow:
        trial = make_trial(number, value, LEARNING_RATES[configuration - 1], configuration=configuration, seed=seed)
        return publish_trial(s3, output, trial, draw_row_losses(value, 40, 0.02, seed=number))

    trials = [
        make_trial(1, None, 1e-4, configuration=1, seed=42),
        publish(2, 2, 42, 1.30),
        publish(3, 1, 43, 1.20),
        publish(4, 2, 43, 1.32),
        publish(5, 1, 44, 1.22),
        publish(6, 2, 44, 1.34),
    ]
    report = write_report(store, make_task(output, trials, [1, 2]))
    assert "seed 43 of the first and seed 42 of the second" in report.message
    best = read_json(s3, output, "best.json")
    assert (best["run"], best["value"]) == ("lr-3", pytest.approx(1.21))
    sweep = read_json(s3, output, "sweep.json")
    assert sweep["problems"] == []
    (first, _) = sweep["configurations"]
    assert first.keys().isdisjoint({"low", "high"}), "the interval is that of one seed"
    text = visible_text(read_page(s3, output))
    assert "1.210 ± 0.014" in text
    assert "lr-1, seed 42, Failed lr-3, seed 43: 1.200" in text


def test_write_report_halving_shows_what_was_cut_where(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    steps = [StepResult(step=200, eval_loss=1.8), StepResult(step=400, eval_loss=1.7)]
    cut = make_trial(4, None, 3e-3, phase="Cancelled", steps=steps, cut_at_step=400)
    write_report(store, task.model_copy(update={"trials": [*task.trials, cut]}))
    text = visible_text(read_page(s3, output))
    assert "Halving has compared the trials at steps 200, 400" in text
    assert "step 200: 1.800 step 400: 1.700 cut at step 400" in text
    assert "lr-4, Cancelled" in text


def test_write_report_one_complete_trial_is_the_best_without_comparison(s3: S3Server, store: S3, output: str) -> None:
    task = publish_sweep(s3, output)
    report = write_report(store, task.model_copy(update={"trials": task.trials[:1], "ranking": [1]}))
    assert report.verdict == "NotCompared"
    assert report.message == "lr-1 (learningRate 0.0001) is the only configuration with a complete trial."
    assert read_json(s3, output, "best.json")["run"] == "lr-1"


def test_write_report_without_complete_trial_has_a_page_and_no_best(s3: S3Server, store: S3, output: str) -> None:
    report = write_report(store, make_task(output, [make_trial(1, None, reason="<b>NonFiniteLoss</b>")], []))
    assert (report.verdict, report.message) == ("NotCompared", "No trial is complete.")
    assert "lr-1, Failed ( <b>NonFiniteLoss</b>)" in visible_text(read_page(s3, output))
    assert sorted(s3.list_keys(output)) == [
        f"{output.removeprefix('s3://results/')}/{n}" for n in ("report.html", "sweep.json")
    ]


def test_write_report_hundred_trials_are_all_on_the_page(s3: S3Server, store: S3, output: str) -> None:
    trials = [
        make_trial(number, 1 + number / 100, 1e-4 * number, adapter_uri=f"{output}/lr-{number}")
        for number in range(1, 101)
    ]
    report = write_report(store, make_task(output, trials, range(1, 101)))
    page = read_page(s3, output)
    assert len(page.get_element_by_id("configurations").findall(".//tbody/tr")) == 100
    assert len(page.findall(".//circle")) == 100
    assert "And 81 more in sweep.json" in visible_text(page)  # 100 without evaluation.json, and one manifest
    assert len(read_json(s3, output, "sweep.json")["configurations"]) == 100
    assert report.verdict == "NotCompared"
