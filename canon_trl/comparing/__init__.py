"""Comparisons of methods over tasks and seeds: the command `canon_trl compare`."""
