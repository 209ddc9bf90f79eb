"""List, show and copy the recipes and the accelerate configs of the package.

canon-trl recipes                            # the list
canon-trl recipes show arithmetic            # the file
canon-trl recipes copy arithmetic [PATH]     # to edit it; into the working folder by default
canon-trl recipes copy zero3
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from canon_trl.options import did_you_mean
from canon_trl.recipes import FOLDER, recipe_names

USAGE = "usage: canon-trl recipes [show NAME | copy NAME [PATH]]"
PACKAGE = Path(__file__).parents[1]


def accelerate_folder() -> Path:
    """Return the folder with the accelerate configs: in the wheel part of the package, in a checkout next to it."""
    installed = PACKAGE / "accelerate_configs"
    return installed if installed.is_dir() else PACKAGE.parent / "accelerate_configs"


def files() -> dict[str, dict[str, Path]]:
    """Return the shipped files by kind and name."""
    return {
        "Recipes, for --config": {name: FOLDER / f"{name}.yaml" for name in recipe_names()},
        "Accelerate configs, for accelerate launch --config_file": {
            path.stem: path for path in sorted(accelerate_folder().glob("*.yaml"))
        },
    }


def find(name: str) -> Path:
    """Return the file of a name, with or without `.yaml`."""
    known = {each: path for named in files().values() for each, path in named.items()}
    if (stem := name.removesuffix(".yaml")) not in known:
        raise ValueError(f"there is no recipe or accelerate config {name!r}{did_you_mean(stem, known)}")
    return known[stem]


def first_sentence(path: Path) -> str:
    """Return the first sentence of the comment that a file begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
        if line.endswith(":"):
            break
    return re.split(r"(?<=[.?])\s", " ".join(lines))[0].rstrip(".:")


def list_all() -> None:
    """Print the names, each with its first sentence."""
    for title, named in files().items():
        width = max(map(len, named))
        print(
            f"{title}:", *(f"  {name:{width}}  {first_sentence(path)}" for name, path in named.items()), "", sep="\n"
        )
    print("canon-trl recipes show NAME prints a file, and canon-trl recipes copy NAME [PATH] copies it.")


def show(name: str) -> None:
    """Print a file."""
    print(find(name).read_text(), end="")


def copy(name: str, destination: str = ".") -> None:
    """Copy a file, without replacing another one."""
    source, target = find(name), Path(destination)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ValueError(f"{target} exists; name another file, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(target)


ACTIONS: dict[str, tuple[Callable[..., None], range]] = {"show": (show, range(1, 2)), "copy": (copy, range(1, 3))}


def run(argv: list[str]) -> None:
    """Do what the arguments say."""
    if not argv:
        list_all()
    elif argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
    else:
        action, *given = argv
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r}{did_you_mean(action, ACTIONS)}; {USAGE}")
        do, counts = ACTIONS[action]
        if len(given) not in counts:
            raise ValueError(f"{action} takes a NAME{' and a PATH' if action == 'copy' else ''}; {USAGE}")
        do(*given)
