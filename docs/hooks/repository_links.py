"""Make links that leave docs/ work on the site as on GitHub: their targets become pages under repository/.

Markdown stays as it is, code becomes a code block, a notebook becomes its cells and their outputs, a folder a list of
its files; anything else is copied. Every notebook in examples/ is a page in the navigation, whether linked or not.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?![\w+.-]+:|[#/])[^)\s#]+")
OUTSIDE = "repository/"
NOTEBOOKS = "examples/*.ipynb"
ANSI = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
LANGUAGES = {".py": "python", ".sh": "bash", ".slurm": "bash", ".toml": "toml", ".yaml": "yaml", "": "text"}
PAGES = {*LANGUAGES, ".ipynb"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    examples = next(section["Examples"] for section in config.nav if "Examples" in section)
    examples += [f"{OUTSIDE}examples/{path.name}.md" for path in notebooks(config)]
    return config


def notebooks(config: MkDocsConfig) -> list[Path]:
    return sorted(Path(config.docs_dir).parent.glob(NOTEBOOKS))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path in notebooks(config):
        uri = f"{OUTSIDE}examples/{path.name}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))  # for download
        files.append(as_file(path, f"{uri}.md", config))
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
        return File.generated(config, uri, content=notebook_page(source), **kind)
    return File.generated(config, uri, abs_src_path=str(source), **kind)


def notebook_page(source: Path) -> str:
    cells = nbformat.read(source, as_version=4).cells
    parts = [part for cell in cells for part in cell_parts(cell)]
    parts.insert(1, f'<a href="{source.name}" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n"


def cell_parts(cell: nbformat.NotebookNode) -> Iterator[str]:
    """The Markdown of a cell and of its outputs."""
    if cell.cell_type == "markdown":
        yield cell.source
    elif cell.cell_type == "code":
        yield f"````python\n{cell.source}\n````"
        if shown := [text for text in map(output_text, cell.outputs) if text]:
            yield '<div class="cell-output" markdown="1">\n\n' + "\n\n".join(shown) + "\n\n</div>"


def output_text(output: nbformat.NotebookNode) -> str:
    """The Markdown of an output in its richest form; empty for what is written to stderr."""
    if output.output_type == "stream":
        return as_text(output.text) if output.name == "stdout" else ""
    if output.output_type == "error":
        return as_text("\n".join(output.traceback))
    data = output.data
    if "image/png" in data:
        return f"![Output of the cell](data:image/png;base64,{''.join(data['image/png'].split())})"
    if "text/html" in data:
        lines = str(data["text/html"]).replace('class="dataframe"', "").splitlines()
        return "\n".join(filter(None, map(str.strip, lines)))  # Markdown takes indented lines for code
    if "text/markdown" in data:
        return str(data["text/markdown"])
    return as_text(data.get("text/plain", ""))


def as_text(text: str) -> str:
    """A code block of the text as a terminal shows it, without colours and overwritten progress bars."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in ANSI.sub("", text).splitlines()]
    return "````text\n" + "\n".join(lines) + "\n````" if "".join(lines).strip() else ""
