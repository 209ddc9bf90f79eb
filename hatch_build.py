"""Make the relative links of the README absolute in the package's metadata, where nothing is relative to them.

A link leads to the file at the tag of the version, so the page of a release keeps showing the files of that release.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# The target of `](...)` and, for a picture, its `![...` before. Targets with a scheme and anchors stay as they are.
LINK = re.compile(r"(?P<before>(?P<picture>!)?\[[^\[\]]*\]\(|\]\()(?![a-z]+:|#)(?P<target>[^)\s]+)")


class AbsoluteLinks(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root, repository, tag = Path(self.root), metadata["urls"]["Repository"], f"v{metadata['version']}"

        def absolute(link: re.Match[str]) -> str:
            path = root / link["target"].partition("#")[0]
            view = "raw" if link["picture"] else "tree" if path.is_dir() else "blob"
            return f"{link['before']}{repository}/{view}/{tag}/{link['target']}"

        text = LINK.sub(absolute, (root / "README.md").read_text())
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
