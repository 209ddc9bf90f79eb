"""The citation of this package."""

from importlib.metadata import version


def package_citation() -> str:
    """Return the BibTeX entry of this package, with the same facts as `CITATION.cff`."""
    return (
        "@software{canon_trl,\n"
        "    title   = {{canon_trl}},\n"
        "    author  = {{The canon_trl contributors}},\n"
        f"    version = {{{version('canon-trl')}}},\n"
        "    license = {Apache-2.0},\n"
        "}"
    )
