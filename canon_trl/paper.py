"""Where a method comes from: its paper, or the lack of one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The paper of a method; every file of a method has one as its `PAPER`.

    Args:
        key: of the BibTeX entry.
        title, authors: as the paper has them; authors as BibTeX reads them, joined by `and`.
        id: on arXiv; https://huggingface.co/papers/<id> shows it.
        code: the reference implementation, as `owner/repository`; `None` where none is published.
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
        """The form in which a trainer of TRL names its paper."""
        return {"title": self.title, "id": self.id, "citation": self.citation}
