"""The paper that a method comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The paper of a method, which the method's file defines as `PAPER`.

    Args:
        key: key of the BibTeX entry.
        title, authors: as in the paper; authors in BibTeX form, joined by `and`.
        id: arXiv identifier; the paper's page is https://huggingface.co/papers/<id>.
        code: repository of the authors' code on GitHub, as `owner/repository`; `None` if none is published.
    """

    key: str
    title: str
    authors: str
    id: str
    code: str | None = None

    @property
    def url(self) -> str:
        return f"https://huggingface.co/papers/{self.id}"

    @property
    def citation(self) -> str:
        """The BibTeX entry, in the form that TRL uses for its own methods."""
        return (
            f"@article{{{self.key},\n"
            f"    title   = {{{{{self.title}}}}},\n"
            f"    author  = {{{self.authors}}},\n"
            f"    year    = {2000 + int(self.id[:2])},\n"
            f"    eprint  = {{arXiv:{self.id}}},\n"
            "}"
        )

    @property
    def for_trl(self) -> dict[str, str]:
        """The paper in the form of the `_paper` attribute of TRL's trainers."""
        return {"title": self.title, "id": self.id, "citation": self.citation}
