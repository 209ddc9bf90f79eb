"""Controllers for tests: one of every knob, which keep what they are told."""

from typing import ClassVar

from canon_trl.controllers import E3Temperature


class KeepingE3(E3Temperature):
    """E3, with the entropies that it was told and the temperatures that it answered."""

    seen: ClassVar[list] = []

    def update(self, measured):
        answer = super().update(measured)
        self.seen.append((measured["entropy"], answer))
        return answer


class Ramp:
    """Adds `by` at every update, whatever was measured."""

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
