"""Patterns of the limits: what they match, and which ambiguous patterns are rejected."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_operator.policy import limits
from finetune_operator.policy.limits import matches_pattern

DIGEST = "@sha256:" + "0" * 64
IMAGES = "registry.example/ml/"


class PatternCase(NamedTuple):
    pattern: str
    matching: list[str]
    other: list[str]


PATTERNS = {
    "one digest": PatternCase(f"{IMAGES}trainer{DIGEST}", [f"{IMAGES}trainer{DIGEST}"], [f"{IMAGES}trainer@sha256:1"]),
    "any digest, no tag": PatternCase(
        f"{IMAGES}trainer@sha256:*",
        [f"{IMAGES}trainer{DIGEST}"],
        [f"{IMAGES}trainer", f"{IMAGES}trainer:1", f"{IMAGES}trainer:1{DIGEST}"],
    ),
    "tags, no digest that overrides them": PatternCase(
        f"{IMAGES}trainer:1.*",
        [f"{IMAGES}trainer:1.2", f"{IMAGES}trainer:1."],
        [f"{IMAGES}trainer:2.0", f"{IMAGES}trainer:1.2{DIGEST}", f"{IMAGES}trainer{DIGEST}", f"{IMAGES}trainer"],
    ),
    "one folder": PatternCase(
        f"{IMAGES}*:*",
        [f"{IMAGES}trainer:1"],
        [f"{IMAGES}team/trainer:1", f"{IMAGES}trainer{DIGEST}"],
    ),
    "registry": PatternCase(
        "registry.example/**",
        [f"{IMAGES}trainer:1", f"registry.example/x{DIGEST}"],
        ["registry.example.evil/x:1", "evil/registry.example/x", "registry.example:5000/x", "x"],
    ),
    "dot is literal": PatternCase("registry.example/a:1", [], ["registryXexample/a:1"]),
    "regular expression is literal": PatternCase("registry.example/a|b:[0-9]+", [], ["registry.example/a", "b:1"]),
    "domain of an endpoint": PatternCase(
        "https://*.s3.example",
        ["https://a.s3.example", "https://a.b.s3.example"],
        [
            "https://s3.example",
            "https://a.s3.example.evil",
            "http://a.s3.example",
            "https://evil\\.s3.example",
            "https://evil%2f.s3.example",
            "https://a.s3.example:444",
            "https://evil\n.s3.example",
        ],
    ),
    "organization of the hub": PatternCase("hf://meta-llama/*", ["hf://meta-llama/L-3.1"], ["hf://meta-llama2/x"]),
    "volume claim": PatternCase(
        "pvc://models/**", ["pvc://models/a/b", "pvc://models/"], ["pvc://models2/a", "pvc://models"]
    ),
    "names": PatternCase("finetune-*", ["finetune-s3", "finetune-"], ["finetune", "my-finetune-s3", "finetune-s3\n"]),
    "domain of a label": PatternCase(
        "example.com/*", ["example.com/team"], ["example.com/a/b", "team", "a.example.com/x"]
    ),
    "all characters": PatternCase("**", ["", "a/b:c@d\n"], []),
}


@pytest.mark.parametrize("case", PATTERNS.values(), ids=PATTERNS)
def test_matches_pattern_accepts_and_rejects_values(case: PatternCase) -> None:
    assert [value for value in case.matching if not matches_pattern(value, case.pattern)] == []
    assert [value for value in case.other if matches_pattern(value, case.pattern)] == []


PATTERN_TYPES: dict[str, tuple[object, list[str], list[str]]] = {
    "images": (
        limits.ImagePattern,
        ["trainer", "trainer:*", "trainer@sha256:*", "r.example:5000/a/*:*", "r.example/**", "r.example/a-*/b:1*"],
        ["*", "**", "*/trainer", "r.example*/x", "r.example**", "r.example/a**", "r.example/***", "", "a b", "x/$y"],
    ),
    "endpoints": (
        limits.EndpointPattern,
        ["aws", "https://s3.example", "http://minio.storage:9000", "https://*.s3.example:8443/".rstrip("/")],
        ["*", "s3.example", "https://*", "https://s3.example*", "https://s3.*.example", "https://a@s3.example",
         "https://s3.example/path", "ftp://s3.example", "https://*s3.example", "AWS"],
    ),
    "models": (
        limits.ModelPattern,
        ["hf://**", "hf://org/*", "s3://models/**", "pvc://models/**", "pvc://models", "s3://models/a-*/**"],
        ["**", "hf://*", "hf://org*/x", "hf://*/x", "s3://m**", "https://x/y", "s3://models/**/x"],
    ),
    "datasets": (
        limits.DatasetPattern,
        ["hf://**", "hf://datasets/**", "hf://datasets/org/*", "s3://data/**", "pvc://data/**", "pvc://data/a-*/**"],
        ["**", "hf://org/*", "hf://datasets/org*/x", "hf://datasets/*", "hf://datasets*", "s3://d**", "file:///x"],
    ),
    "names": (limits.NamePattern, ["a", "*", "ml-*", "a.b"], ["", "A", "a/b", "a|b", "a b", "^a$"]),
}  # fmt: skip


@pytest.mark.parametrize(("pattern_type", "valid", "invalid"), PATTERN_TYPES.values(), ids=PATTERN_TYPES)
def test_pattern_types_reject_ambiguous_patterns(pattern_type: object, valid: list[str], invalid: list[str]) -> None:
    adapter = TypeAdapter[str](pattern_type)
    assert [adapter.validate_python(pattern) for pattern in valid] == valid
    for pattern in invalid:
        with pytest.raises(ValidationError):
            adapter.validate_python(pattern)
