"""The adaptive upper clip of MAI-Thinking-1 (https://microsoft.ai/wp-content/uploads/2026/06/main_20260602_2.pdf)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from canon_trl.options import NotNegative, Positive


class AdaptiveClip:
    """Hold the entropy near a target with the upper clip: wider below the target, narrower above it (Sec. 3.1.1).

        epsilon_high <- start + k,    k <- clip(k + step * sign(H* - H), 0, most)

    `start` is `epsilon_high` in the config, H the mean entropy per trained token of the optimiser step, and k is 0 at
    first. A wide upper clip lets unlikely tokens grow faster, which raises the entropy. The value steps around the
    target and never settles. With one update per rollout no ratio is clipped, so k has no effect.

    MAI-Thinking-1 clips ratios to [1 - epsilon, 1 / (1 - epsilon) + k] with epsilon 0.6, step 0.25 and k at most 2.5
    towards 0.3 nats. In its setting the interval is symmetric in log p at first: `epsilon: 0.6`, `epsilon_high: 1.5`.
    It also caps all ratios at 50 (`delta: 50.0`), and makes 5 updates per rollout. For a narrow clip such as 0.28,
    choose smaller `step` and `most`.

    Departure: the report estimates H from the sampled tokens, with importance weights. Here it is the exact entropy of
    the distributions that the step was computed with. The report is not on arXiv; the formula is as quoted from it and
    as MILES implements it. 2602.09782 also moves clips to control entropy, but its bounds depend on each token's
    probability and follow a schedule.

    Use it with several updates per rollout, if you know the entropy that you want.

    Args:
        start: `epsilon_high` in the config.
        target_entropy: H*, in nats per token.
        step: change of k per optimiser step.
        most: the largest k; 0 leaves `epsilon_high` as it is.
    """

    steers: ClassVar[str] = "epsilon_high"

    def __init__(
        self,
        start: float,
        *,
        target_entropy: Annotated[float, "(0, inf)"] = 0.3,
        step: Positive = 0.25,
        most: NotNegative = 2.5,
    ) -> None:
        self.start = start
        self.target_entropy = target_entropy
        self.step = step
        self.most = most
        self.widening = 0.0

    def update(self, measured: Mapping[str, float]) -> float:
        """Return `epsilon_high` for the next step, given the `"entropy"` of this one, the mean per token in nats.

        An entropy that is missing or NaN, as after a step that trained no token, changes nothing.
        """
        entropy = measured.get("entropy", math.nan)
        direction = (entropy < self.target_entropy) - (entropy > self.target_entropy)
        self.widening = min(max(self.widening + direction * self.step, 0.0), self.most)
        return self.start + self.widening

    def state_dict(self) -> dict[str, Any]:
        """Return k."""
        return {"widening": self.widening}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what [`state_dict`] returned."""
        self.widening = state["widening"]
