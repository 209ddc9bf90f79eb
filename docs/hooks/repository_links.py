"""Make links that leave docs/ work on the site as on GitHub: their targets become pages under repository/.

Markdown stays as it is, code becomes a code block, a notebook becomes its cells, a folder a list of its files;
anything else is copied.
"""

import os
import re
from pathlib import Path, PurePosixPath

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?![\w+.-]+:|[#/])[^)\s#]+")
OUTSIDE = "repository/"
LANGUAGES = {".py": "python", ".sh": "bash", ".slurm": "bash", ".toml": "toml", ".yaml": "yaml", "": "text"}
PAGES = {*LANGUAGES, ".ipynb"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    unread = list(files.documentation_pages())
    while unread:
        page = unread.pop()
        for link in LINK.findall(page.content_string):
            target = in_repository(page.src_uri, link)
            uri = site_uri(root, target)
            if uri.startswith(OUTSIDE) and (root / target).exists() and files.get_file_from_path(uri) is None:
                files.append(as_file(root / target, uri, config))
                if uri.endswith(".md"):
                    unread.append(files.get_file_from_path(uri))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    root, uri = Path(config.docs_dir).parent, page.file.src_uri

    def rewrite(link: re.Match) -> str:
        target = site_uri(root, in_repository(uri, link[0]))
        if files.get_file_from_path(target) is None:
            return link[0]
        return os.path.relpath(target, PurePosixPath(uri).parent)

    return LINK.sub(rewrite, markdown)


def in_repository(page: str, link: str) -> str:
    """The target of a link on that page of the site, relative to the root of the repository."""
    source = page.removeprefix(OUTSIDE) if page.startswith(OUTSIDE) else f"docs/{page}"
    return os.path.normpath(PurePosixPath(source).parent / link)


def site_uri(root: Path, target: str) -> str:
    """The URI of that file or folder of the repository on the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    is_page = (root / target).is_dir() or PurePosixPath(target).suffix in PAGES
    return f"{OUTSIDE}{target}.md" if is_page else f"{OUTSIDE}{target}"


def as_file(source: Path, uri: str, config: MkDocsConfig) -> File:
    kind = {"inclusion": InclusionLevel.NOT_IN_NAV}
    if source.is_dir():
        inside = sorted(path for path in source.iterdir() if path.is_file())
        listed = "\n".join(f"- [{path.name}]({source.name}/{path.name})" for path in inside)
        return File.generated(config, uri, content=f"# {source.name}/\n\n{listed}\n", **kind)
    if source.suffix in LANGUAGES:
        block = f"````{LANGUAGES[source.suffix]}\n{source.read_text()}\n````"
        return File.generated(config, uri, content=f"# {source.name}\n\n{block}\n", **kind)
    if source.suffix == ".ipynb":
        cells = nbformat.read(source, as_version=4).cells
        texts = [cell.source if cell.cell_type == "markdown" else f"````python\n{cell.source}\n````" for cell in cells]
        return File.generated(config, uri, content="\n\n".join(texts) + "\n", **kind)
    return File.generated(config, uri, abs_src_path=str(source), **kind)
