"""Renamed to `canon_trl.guards`."""

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"canon_trl.rewards was renamed to canon_trl.guards; import {name} from there")
