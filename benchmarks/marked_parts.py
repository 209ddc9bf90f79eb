"""Replace the generated parts of a page, which stand between comments."""

import re
from collections.abc import Mapping


def filled_in(text: str, by_name: Mapping[str, str]) -> str:
    """The text with new content between each `<!-- name -->` and `<!-- end -->`.

    Raises:
        ValueError: The text has no place for a name.
    """
    for name, content in by_name.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        if not place.search(text):
            raise ValueError(f"the text has no place '<!-- {name} -->' ... '<!-- end -->'")
        text = place.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text
