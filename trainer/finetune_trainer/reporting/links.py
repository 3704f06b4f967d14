"""Links between pages in S3. They are relative, so that they work wherever the objects are served or copied to."""

from __future__ import annotations

from posixpath import dirname, relpath
from urllib.parse import quote

from finetune_trainer.records.manifest import REPORT_NAME
from finetune_trainer.storage import Location


def link_run_report(page: Location, adapter_uri: str | None) -> str | None:
    """Return the address of a run's report relative to a page, or None without a result and in another bucket."""
    if adapter_uri is None:
        return None
    report = Location.parse_folder(adapter_uri).child(REPORT_NAME)
    if report.bucket != page.bucket:
        return None
    return quote(relpath(f"/{report.key}", dirname(f"/{page.key}")))
