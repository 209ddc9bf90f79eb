"""Controllers: classes that change one setting between rollouts or optimiser steps, from measurements across ranks.

[`Controller`] is their interface, and [`Run`] holds what their constructors can read about the run. Each is a class in
a separate file; [`CONTROLLERS`] lists them by the names that the config uses.
"""

from canon_trl.controllers.adaptive_clip import AdaptiveClip
from canon_trl.controllers.e3_temperature import E3Temperature
from canon_trl.controllers.protocol import READABLE, Controller, Run
from canon_trl.method import Method, Stage, by_name

CONTROLLERS = by_name(
    Method("e3_temperature", E3Temperature),
    Method("adaptive_clip", AdaptiveClip),
)
STAGE = Stage("controller", CONTROLLERS, READABLE, repeats=True, called_in="hook/steering.py")

__all__ = ["CONTROLLERS", "STAGE", "AdaptiveClip", "Controller", "E3Temperature", "Run"]
