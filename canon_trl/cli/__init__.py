"""The command line: `canon-trl COMMAND` or `python -m canon_trl COMMAND`.

On several processes it is `accelerate launch -m canon_trl COMMAND`. This file imports no heavy library, so that
`--help` and a misspelt command end at once.
"""

import logging
import os
import sys
from importlib import import_module
from importlib.metadata import version

from canon_trl.cli.errors import INTERRUPTED, ends_in_one_line, resume_hint
from canon_trl.options import did_you_mean

# Each is a module of this folder, with _ instead of -: `main(argv)` does the work, and `run(argv)` ends the process
# afterwards.
COMMANDS = {
    "train": "train a model with CANON, another method, or A*-PO",
    "values": "sample a model's rewards for every prompt: stage 1 of A*-PO",
    "evaluate": "sample responses to benchmarks: pass@k, majority votes, lengths, entropy",
    "compare": "run methods on tasks with several seeds, and report differences with intervals",
    "probe": "sample once before training: does a metric matter, which way will length move, is there a trap",
    "recipes": "list, show and copy the recipes and accelerate configs",
    "env": "print versions and devices for a bug report",
    "new-method": "start a new method in a checkout of canon_trl: its file, test and entries",
}
USAGE = "usage: canon-trl COMMAND [--config RECIPE] [--OPTION VALUE ...]"


def main(argv: list[str] | None = None) -> None:
    """Run a command, whose name is the first argument."""
    debug, given = split_debug(sys.argv[1:] if argv is None else argv)
    command, *rest = given or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
        print(
            f"{USAGE}\n\n{listed}\n\n`canon-trl COMMAND --help` lists the options of a command; `--debug` shows the "
            "traceback of an error.\n`python -m canon_trl` is the same; on several processes: accelerate launch -m "
            "canon_trl COMMAND ..."
        )
        return
    if command == "--version":
        print(version("canon-trl"))
        return
    with ends_in_one_line(debug=debug):
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}; {USAGE}")
        logging.basicConfig(level=logging.WARNING)
        if not {"", os.getcwd()} & {*sys.path}:  # `python -m` has it: for import paths of reward functions
            sys.path.append(os.getcwd())
        try:
            import_module(f"{__name__}.{command.replace('-', '_')}").run(rest)
        except KeyboardInterrupt as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(f"\n{resume_hint(stopped, command, rest)}", file=sys.stderr)
            sys.exit(INTERRUPTED)


def split_debug(flags: list[str]) -> tuple[bool, list[str]]:
    """Return whether `--debug` is among the flags, and the others; with a value, it is an option of transformers."""
    for place, flag in enumerate(flags):
        following = flags[place + 1 : place + 2]
        if flag == "--debug" and (place == 0 or not following or following[0].startswith("-")):
            return True, flags[:place] + flags[place + 1 :]
    return False, flags
