"""`python -m documentation [--check]`: generate the reference pages that are about more than the API and the chart.

It needs the root of the repository and dev/ on the Python path. With `--check` it writes nothing and exits with an
error if a page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from documentation.environment_page import render_environment_page
from documentation.metrics_page import render_metrics_page
from documentation.reasons_page import render_reasons_page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def render_pages() -> dict[Path, str]:
    """Return the text of each generated page by its file."""
    return {
        DOCS / "reference" / "environment.md": render_environment_page(),
        DOCS / "reference" / "metrics.md": render_metrics_page(),
        DOCS / "reference" / "reasons.md": render_reasons_page(DOCS / "operations" / "troubleshooting.md"),
    }


def main(arguments: list[str]) -> int:
    """Write the pages that are out of date, or with `--check` list them. Return the exit code."""
    stale = {
        path: text for path, text in render_pages().items() if not path.exists() or path.read_text("utf-8") != text
    }
    for path, text in stale.items():
        if not arguments:
            path.write_text(text, encoding="utf-8")
        print(f"{'stale, run `make generate`' if arguments else 'written'}: {path.relative_to(DOCS.parent)}")
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
