"""Texts that break careless rendering: markup, control characters, extreme lengths."""

from __future__ import annotations

from tests.support.trainer.run_records import make_estimate, make_manifest

from finetune_trainer.records.evaluation import (
    BiasFinding,
    BiasResult,
    Comparison,
    ConfusionMatrix,
    EvaluationReport,
    GateCheck,
    GeneratedAnswer,
    Measure,
    OverfittingResult,
    PreflightFinding,
    RejectedRow,
    Sample,
    SampleTurn,
)
from finetune_trainer.records.manifest import AdapterManifest, InputRecord

HOSTILE_TEXTS = {
    "script": "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>",
    "end of everything": '"></pre></bdi></td></table></section></main></body></html><h1>mine</h1>',
    "comment": "<!-- --><![CDATA[ ]]><style>*{display:none}</style>",
    "template": "{{ 7 * 7 }}{% raw %}{# no #}",
    "entities": "&lt;b&gt; &amp; &#60;b&#62; &nbsp;",
    "table": "a | b | c\n| --- | --- |\n| 1 | 2 |",
    "fences": "```\n# out\n````\n~~~\n`````",
    "front matter": "x\n---\nbase_model: evil/other\n---\n# y",
    "heading": "# Not a heading\n\n- not a list\n1. nor this\n===",
    "links": "[click](javascript:alert(1)) ![i](https://evil.example/x.png) https://evil.example www.evil.example",
    "emphasis": "*a* _b_ **c** ~~d~~ `e` $f$ \\",
    "right to left": "\u202egnp.exe\u202c \u2067x\u2069 \u05d0\u05d1\u05d2 \u200f!",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "hidden": "a\u200bb\ufeffc\U000e0041\U000e0042\u2066",
    "control": "nul\x00 bell\x07 escape\x1b[31m delete\x7f next\x85 line\u2028 end",
    "line ends": "a\r\nb\rc\n\n\nd",
    "stacked marks": "Z" + "\u0351\u0352" * 200,
    "megabyte": "x" * 2**20,
    "lines": "\n" * 100_000,
    "nothing": "",
    "space": " ",
}


def make_hostile_sample(text: str) -> Sample:
    """Return a sample with the text in every field."""
    answer = GeneratedAnswer(text=text, reasoning=f"r{text}", is_cut=True)
    return Sample(
        kind="row",
        turns=[SampleTurn(role=f"r{text}", text=text)],
        reference=text,
        reference_reasoning=f"r{text}",
        base=answer,
        tuned=answer,
        baselines={f"b{text}": answer},
    )


def hostile_evaluation(text: str) -> EvaluationReport:
    """Return an evaluation with the text in every field that can contain untrusted text."""
    number = make_estimate(0.5, 0.1)
    return EvaluationReport(
        measures=[
            Measure(
                name=f"m{text}",
                higher_is_better=True,
                base=number,
                tuned=number,
                change=number,
                baselines={f"b{text}": Comparison(estimate=number, change=number)},
            )
        ],
        unused_columns={f"c{text}": 3},
        confusion=ConfusionMatrix(labels=[text], counts=[[1, 0]], base_counts=[[0, 1]]),
        samples=[make_hostile_sample(text)],
        overfitting=OverfittingResult(verdict="unknown", message=f"m{text}"),
        preflight=[PreflightFinding(check="answers", status="warning", message=f"m{text}")],
        bias=BiasResult(
            findings=[
                BiasFinding(
                    kind="swap",
                    category=f"c{text}",
                    base=number,
                    tuned=number,
                    change=number,
                    flagged=True,
                    message=text,
                )
            ],
            representation={f"c{text}": {f"g{text}": 3}},
            notes=[f"n{text}"],
        ),
        gate=[GateCheck(metric=text, rule=text, value=None, passed=False)],
        examples=[RejectedRow(reason=text, where=f"s3://data/{text}", text=text)],
        missing=[text],
    )


def hostile_manifest(text: str) -> AdapterManifest:
    """Return a manifest with the text in the names of its objects."""
    return make_manifest(inputs=[InputRecord(uri=f"s3://data/{text}", etag=f"e{text}", size=1)])
