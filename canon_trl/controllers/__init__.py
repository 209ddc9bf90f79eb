"""Controllers: what moves a number of the run between rollouts or optimiser steps, on numbers measured over all ranks.

[`Controller`] says what one does and [`Run`] what it can read of the run when it is made. Each is a class in a file of
its own; [`CONTROLLERS`] names them for the config.
"""

from canon_trl.controllers.e3_temperature import E3Temperature
from canon_trl.controllers.protocol import READABLE, Controller, Run
from canon_trl.method import Method, Stage, by_name

CONTROLLERS = by_name(Method("e3_temperature", E3Temperature))
STAGE = Stage("controller", CONTROLLERS, READABLE, repeats=True, called_in="hook/steering.py")

__all__ = ["CONTROLLERS", "STAGE", "Controller", "E3Temperature", "Run"]
