"""Hooks of MkDocs: add files from outside of docs/ to the site, and adapt links to them.

The pages are written for the repository, where links are relative to the file. On the site, a page from outside of
docs/ has another address, manifests can be downloaded, and there is no source code unless `repo_url` is known.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "charts/finetune-operator/README.md": "reference/chart-values.md",
    "dev/README.md": "contributing/local-cluster.md",
}
"""Pages of the site by their files in the repository."""
DOWNLOADS = "manifests"
"""Folder whose files can be downloaded from the site."""
_NOTE = re.compile(r"\A<!-- Generated .*? -->\n")
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the downloads."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in sorted((ROOT / DOWNLOADS).rglob("*")):
        if file.is_file():
            files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt the links to files of the repository, and remove the note of generated pages, which hides the title."""
    markdown = _NOTE.sub("", markdown)
    source = _find_source(page.file.src_uri)
    folder = posixpath.dirname(source)
    return _LINK.sub(lambda match: _adapt_link(match, folder, page.file.src_uri, config.repo_url), markdown)


def _find_source(page: str) -> str:
    """Return the file in the repository of a page of the site."""
    return next((source for source, target in PAGES.items() if target == page), f"docs/{page}")


def _adapt_link(match: re.Match[str], folder: str, page: str, repository: str | None) -> str:
    if "://" in match["target"]:
        return match[0]
    source = posixpath.normpath(posixpath.join(folder, match["target"]))
    if not (ROOT / source).exists():
        return match[0]  # MkDocs reports it, unless it is in a code block
    address = _find_address(source, page, repository)
    return f"{match['image']}[{match['text']}]({address}{match['anchor'] or ''})" if address else match["text"]


def _find_address(source: str, page: str, repository: str | None) -> str | None:
    """Return the address of a file of the repository on the site, or in the repository, or None."""
    if source.startswith("docs/"):
        target = source.removeprefix("docs/")
    elif source.startswith(f"{DOWNLOADS}/") and (ROOT / source).is_file():
        target = source
    else:
        target = PAGES.get(source, "")
    if target:
        return posixpath.relpath(target, posixpath.dirname(page) or ".")
    return f"{repository.rstrip('/')}/blob/main/{source}" if repository else None
