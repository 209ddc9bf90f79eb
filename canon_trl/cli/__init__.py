"""The command line: `python -m canon_trl COMMAND`, on several processes `accelerate launch -m canon_trl COMMAND`."""

import logging
import sys
from importlib import import_module

from canon_trl.options import did_you_mean

# Each is a module of this folder: `main(argv)` does the work, and `run(argv)` ends the process afterwards.
COMMANDS = {
    "train": "train a model with CANON, another method, or A*-PO",
    "values": "sample a model's rewards for every prompt: stage 1 of A*-PO",
    "evaluate": "sample responses to benchmarks: pass@k, majority votes, lengths, entropy",
    "probe": "sample once before training: does a metric matter, which way will length move, is there a trap",
}
USAGE = "usage: python -m canon_trl COMMAND [--config RECIPE] [--OPTION VALUE ...]"


def main(argv: list[str] | None = None) -> None:
    """Run a command, whose name is the first argument."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
        print(f"{USAGE}\n\n{listed}\n\n`COMMAND --help` lists the options of a command.")
    elif command not in COMMANDS:
        print(f"error: unknown command {command!r}{did_you_mean(command, COMMANDS)}; {USAGE}", file=sys.stderr)
        sys.exit(2)
    else:
        logging.basicConfig(level=logging.WARNING)
        import_module(f"{__name__}.{command}").run(rest)
