"""How this package is cited."""

from importlib.metadata import version


def package_citation() -> str:
    """The BibTeX entry of this package, with the facts of `CITATION.cff`."""
    return (
        "@software{canon_trl,\n"
        "    title   = {{canon_trl}},\n"
        "    author  = {{The canon_trl contributors}},\n"
        f"    version = {{{version('canon-trl')}}},\n"
        "    license = {Apache-2.0},\n"
        "}"
    )
