"""`python -m canon_trl COMMAND`."""

from canon_trl.cli import main

if __name__ == "__main__":
    main()
