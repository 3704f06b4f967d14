"""`python -m documentation.pictures FOLDER`: take the pictures of the tutorials of reports that `make samples` saved.

FOLDER has `SAMPLE-report.html`: `python -m tests.bench.bench_samples --reports FOLDER`. It needs Debian's Chromium.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = (900, 1080)
"""Width and height of a picture in CSS pixels: headline, verdicts, recommendation and table of the report."""
_COLORS = 64


def main(folder: Path) -> None:
    """Take a picture of each report in the folder."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, device_scale_factor=1.25)
        for report in sorted(folder.glob("*-report.html")):
            page.goto(report.as_uri())
            picture = Image.open(io.BytesIO(page.screenshot()))
            target = IMAGES / f"report-{report.name.removesuffix('-report.html')}.png"
            picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=_COLORS).save(target, optimize=True)
            print(f"{target.relative_to(IMAGES.parents[1])}: {target.stat().st_size} bytes")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
