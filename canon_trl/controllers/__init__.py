"""Controllers: what moves a setting of the training between steps, on numbers measured over all ranks.

Each is a class in a file of its own: `steers` names the setting, `update(measured)` returns its new value, and
`state_dict()` and `load_state_dict(state)` let it resume. [`CONTROLLERS`] names them for the config.
"""

from canon_trl.controllers.e3_temperature import E3Temperature
from canon_trl.method import Method, by_name

CONTROLLERS = by_name(Method("e3_temperature", E3Temperature))

__all__ = ["CONTROLLERS", "E3Temperature"]
