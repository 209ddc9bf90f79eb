"""Renamed: see `canon_trl.guards`."""

raise ImportError("canon_trl.rewards holds no rewards and is now canon_trl.guards, with the same names")
