"""Code blocks of the documentation, and the comments that say which test runs them.

A comment before a block is one of:

- `<!-- run in tests: offline -->`: runs without a cluster, in `tests/docs/test_code_blocks.py`,
- `<!-- run in tests: cluster -->`: runs in the local cluster, in `tests/cluster/test_tutorials.py`,
- `<!-- run in tests: as in PAGE -->`: is that block of another page, with the name of this one,
- `<!-- not run in tests: REASON -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_RUN = "run in tests: "
_NOT_RUN = "not run in tests: "
_SAME_AS = "as in "


@dataclass(frozen=True)
class CodeBlock:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    code: str
    comment: str

    @property
    def place(self) -> str:
        """The page and the line, for messages and names of tests."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def runner(self) -> str:
        """The test that runs the block: `offline`, `cluster` or `as in PAGE`. It is empty if there is none."""
        return self.comment.removeprefix(_RUN) if self.comment.startswith(_RUN) else ""

    @property
    def model_page(self) -> Path | None:
        """The page whose test runs this block with another name."""
        if not self.runner.startswith(_SAME_AS):
            return None
        return self.page.parent / self.runner.removeprefix(_SAME_AS)

    @property
    def reason(self) -> str:
        """Why no test runs the block. It is empty without a reason."""
        return self.comment.removeprefix(_NOT_RUN) if self.comment.startswith(_NOT_RUN) else ""


def read_blocks(page: Path, language: str) -> list[CodeBlock]:
    """Return the blocks of a page in a language, such as `sh`, in their order."""
    return [block for block in _iterate_blocks(page) if block.language == language]


def _iterate_blocks(page: Path) -> Iterator[CodeBlock]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        yield CodeBlock(page, line, match["language"], code, match["comment"] or "")
