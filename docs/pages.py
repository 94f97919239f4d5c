"""Pages of the site that lie outside docs/: README files of examples and tasks, changes, contributing, security.

MkDocs calls the two functions (`hooks` in mkdocs.yml). Each file stays where readers of the repository look for it, and
links lead there; for the site they are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples/README.md",
    "task_configs/code/README.md": "tasks/code.md",
    "task_configs/math/README.md": "tasks/math.md",
    "task_configs/pair/README.md": "tasks/pair.md",
    "task_configs/router_arena/README.md": "tasks/router_arena.md",
}
"""Path in the repository to path in docs/."""
ASSETS = {
    f"examples/{file.name}": f"examples/{file.name}"
    for file in sorted(ROOT.glob("examples/*.*"))
    if file.suffix != ".md"
}
ASSETS |= {"results/pair/report.html": "results/report.html"}
ASSETS |= {
    file.relative_to(ROOT).as_posix(): f"results/{file.parents[1].name}{file.parent.name.removeprefix('report')}.html"
    for file in sorted(ROOT.glob("results/real/*/report*/report.html"))
}
"""Files that are copied as they are."""
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files to those of docs/."""
    for source, target in {**PAGES, **ASSETS}.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages of the site."""
    source = next((name for name, target in PAGES.items() if target == page.file.src_uri), f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = {**PAGES, **ASSETS}.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, here or '.')}"

    return LINK.sub(rewritten, markdown)
