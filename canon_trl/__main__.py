"""`python -m canon_trl COMMAND`, the same as `canon-trl COMMAND`."""

from canon_trl.cli import main

if __name__ == "__main__":
    main()
