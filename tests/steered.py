"""Controllers that record what they measure and what they return."""

from typing import ClassVar

from canon_trl.controllers import E3Temperature


class KeepingE3(E3Temperature):
    """E3 that records pairs of measured entropy and returned temperature."""

    seen: ClassVar[list] = []

    def update(self, measured):
        temperature = super().update(measured)
        self.seen.append((measured["entropy"], temperature))
        return temperature


class Ramp:
    """Adds `by` at every update and records the measured numbers."""

    seen: ClassVar[list] = []

    def __init__(self, start, *, steers="epsilon_high", by=0.1):
        self.steers = steers
        self.value, self.by = start, by

    def update(self, measured):
        self.seen.append(dict(measured))
        self.value += self.by
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
