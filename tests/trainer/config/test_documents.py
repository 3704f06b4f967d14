"""YAML files that a parser must not follow to the end."""

from __future__ import annotations

import pytest

from finetune_trainer.config.documents import DocumentError, parse_documents, to_plain


def test_parse_documents_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]

    with pytest.raises(DocumentError, match="expand it to more than 1,000,000 values"):
        parse_documents("\n".join(lines))


def test_parse_documents_aliases_are_read() -> None:
    (document,) = parse_documents("limits: &limits {memory: 6Gi}\nagain: *limits\n")

    assert to_plain(document) == {"limits": {"memory": "6Gi"}, "again": {"memory": "6Gi"}}


def test_parse_documents_deep_nesting_is_refused() -> None:
    with pytest.raises(DocumentError, match="is nested too deeply"):
        parse_documents("a: " + "[" * 100_000)


def test_parse_documents_list_that_contains_itself_ends() -> None:
    assert len(parse_documents("a: &a [*a]")) == 1
