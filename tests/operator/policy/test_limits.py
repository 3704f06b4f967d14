"""What the patterns of bounds stand for, and those that would let in more than they seem to."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_operator.policy import limits
from finetune_operator.policy.limits import matches_pattern

DIGEST = "@sha256:" + "0" * 64
IMAGES = "registry.example/ml/"

# pattern, what it lets in, what it does not
PATTERNS: dict[str, tuple[str, list[str], list[str]]] = {
    "one digest": (f"{IMAGES}trainer{DIGEST}", [f"{IMAGES}trainer{DIGEST}"], [f"{IMAGES}trainer@sha256:1"]),
    "any digest, no tag": (
        f"{IMAGES}trainer@sha256:*", [f"{IMAGES}trainer{DIGEST}"],
        [f"{IMAGES}trainer", f"{IMAGES}trainer:1", f"{IMAGES}trainer:1{DIGEST}"],
    ),
    "tags, which a digest would override": (
        f"{IMAGES}trainer:1.*", [f"{IMAGES}trainer:1.2", f"{IMAGES}trainer:1."],
        [f"{IMAGES}trainer:2.0", f"{IMAGES}trainer:1.2{DIGEST}", f"{IMAGES}trainer{DIGEST}", f"{IMAGES}trainer"],
    ),
    "one folder": (
        f"{IMAGES}*:*", [f"{IMAGES}trainer:1"], [f"{IMAGES}team/trainer:1", f"{IMAGES}trainer{DIGEST}"],
    ),
    "a whole registry": (
        "registry.example/**", [f"{IMAGES}trainer:1", f"registry.example/x{DIGEST}"],
        ["registry.example.evil/x:1", "evil/registry.example/x", "registry.example:5000/x", "x"],
    ),
    "a dot is a dot": ("registry.example/a:1", [], ["registryXexample/a:1"]),
    "nothing of a regular expression": ("registry.example/a|b:[0-9]+", [], ["registry.example/a", "b:1"]),
    "a domain": (
        "https://*.s3.example", ["https://a.s3.example", "https://a.b.s3.example"],
        ["https://s3.example", "https://a.s3.example.evil", "http://a.s3.example", "https://evil\\.s3.example",
         "https://evil%2f.s3.example", "https://a.s3.example:444", "https://evil\n.s3.example"],
    ),
    "an organisation of the hub": ("hf://meta-llama/*", ["hf://meta-llama/L-3.1"], ["hf://meta-llama2/x"]),
    "a claim": ("pvc://models/**", ["pvc://models/a/b", "pvc://models/"], ["pvc://models2/a", "pvc://models"]),
    "names": ("finetune-*", ["finetune-s3", "finetune-"], ["finetune", "my-finetune-s3", "finetune-s3\n"]),
    "a domain of labels": ("example.com/*", ["example.com/team"], ["example.com/a/b", "team", "a.example.com/x"]),
    "any": ("**", ["", "a/b:c@d\n"], []),
}  # fmt: skip


@pytest.mark.parametrize(("pattern", "inside", "outside"), PATTERNS.values(), ids=PATTERNS)
def test_matches_pattern_accepts_and_rejects_values(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [value for value in inside if not matches_pattern(value, pattern)] == []
    assert [value for value in outside if matches_pattern(value, pattern)] == []


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
    "names": (limits.NamePattern, ["a", "*", "ml-*", "a.b"], ["", "A", "a/b", "a|b", "a b", "^a$"]),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "good", "bad"), PATTERN_TYPES.values(), ids=PATTERN_TYPES)
def test_pattern_types_reject_ambiguous_patterns(kind: object, good: list[str], bad: list[str]) -> None:
    adapter = TypeAdapter[str](kind)
    assert [adapter.validate_python(pattern) for pattern in good] == good
    for each in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(each)
