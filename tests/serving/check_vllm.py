"""`make test-serving`: vLLM on the CPU loads what the trainer published, and gives the trainer's own answers.

Adapters of the quickstart are trained and published to an S3 server on this machine. vLLM loads them by path, by name
from S3 through the resolver, and in place of each other. Those that `status.result.servable` refuses are refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.serving.adapters import VARIANTS, Adapter, serve_inputs, train_adapter
from tests.serving.vllm_process import VllmProcess, run_vllm
from tests.support.trainer.s3_server import S3Server

_RANK_16, _RANK_64 = "--max-lora-rank=16", "--max-lora-rank=64"


def main() -> None:
    """Run all checks. The first that fails ends the program with an exit code other than 0."""
    with TemporaryDirectory(prefix="serving-") as name, serve_inputs(Path(name)) as server:
        folder = Path(name)
        adapters = {}
        for run in VARIANTS:
            with _measure(f"train {run}"):
                adapters[run] = train_adapter(server, run, folder)
        with _start(folder / "rank-16", server, adapters["first"], _RANK_16) as vllm:
            _check_answers(vllm, adapters)
            _check_refusals(vllm, adapters)
        with _start(folder / "rank-64", server, adapters["rank-64"], _RANK_64) as vllm:
            _check_equal(vllm, "by-path", adapters["rank-64"])


@contextmanager
def _start(folder: Path, server: S3Server, adapter: Adapter, rank: str) -> Iterator[VllmProcess]:
    """Run vLLM with an adapter that it loads at its start as `by-path`."""
    started = time.monotonic()
    with run_vllm(folder, server, adapter.folder, [rank, f"--lora-modules=by-path={adapter.folder}"]) as vllm:
        _print(f"vLLM with {rank} is ready", f"{time.monotonic() - started:.0f} s")
        yield vllm


def _check_answers(vllm: VllmProcess, adapters: dict[str, Adapter]) -> None:
    """Compare the answers of adapters by path, by name from S3, and after a reload."""
    _check_equal(vllm, "by-path", adapters["first"])
    for run in ("first", "second", "rslora"):
        _check_equal(vllm, f"quickstart@{run}", adapters[run])
    answer = vllm.load("by-path", adapters["second"].folder, in_place=True)
    _check(answer.status == 200, "load_inplace", answer.body)
    _check_equal(vllm, "by-path", adapters["second"])


def _check_refusals(vllm: VllmProcess, adapters: dict[str, Adapter]) -> None:
    """Compare what vLLM refuses with what the results say."""
    dora, rank_64 = adapters["dora"], adapters["rank-64"]
    servable = {run: adapter.manifest.servable for run, adapter in adapters.items()}
    _check(all(servable.values()), "every result says which servers load it", str(servable))
    for run, text in (("first", "Yes"), ("rslora", "Yes"), ("rank-64", "Yes, with --max-lora-rank 64")):
        said = servable[run]
        _check(said is not None and said.vllm == text, f"servable of {run}", str(said))
    said = servable["dora"]
    _check(said is not None and said.vllm.startswith("No: vLLM does not load DoRA"), "servable of dora", str(said))
    for adapter, reason in ((dora, "does not yet support DoRA"), (rank_64, "greater than max_lora_rank")):
        answer = vllm.load(adapter.run, adapter.folder)
        _check(answer.status == 500 and reason in answer.body, f"vLLM refuses {adapter.run}", answer.body)
        answer = vllm.chat(f"quickstart@{adapter.run}", "hello")
        _check(answer.status == 404, f"the resolver refuses {adapter.run}", answer.body)
    for name in ("quickstart@missing", "../quickstart", "s3://adapters/quickstart/first", "quickstart@../first"):
        answer = vllm.chat(name, "hello")
        _check(answer.status == 404, f"the resolver refuses {name}", answer.body)
    lines = vllm.log.read_text().count("is not loaded: ")
    _check(lines == 6, "each refusal of the resolver has one line in the log", str(lines))


def _check_equal(vllm: VllmProcess, model: str, adapter: Adapter) -> None:
    for prompt, expected in adapter.answers.items():
        started = time.monotonic()
        answer = vllm.chat(model, prompt)
        _check(answer.status == 200, f"{model} answers", answer.body)
        given = answer.read_message()
        _check(given.strip() == expected.strip(), f"{model} gives the trainer's answer", f"{given!r} {expected!r}")
        _print(f"{model}: {given!r}", f"{time.monotonic() - started:.1f} s")


def _check(is_true: bool, what: str, details: str) -> None:
    if not is_true:
        raise SystemExit(f"FAILED: {what}: {details}")
    _print("ok", what)


@contextmanager
def _measure(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    _print(what, f"{time.monotonic() - started:.0f} s")


def _print(*texts: str) -> None:
    print("  ".join(texts), flush=True)


if __name__ == "__main__":
    main()
