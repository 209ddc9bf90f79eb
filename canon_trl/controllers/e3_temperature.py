"""The temperature scheduler of E3 (https://huggingface.co/papers/2505.18573)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from canon_trl.paper import Paper

PAPER = Paper(
    key="liao2025enhancing",
    title="Enhancing Efficiency and Exploration in Reinforcement Learning for LLMs",
    authors="Mengqi Liao and Xiangyu Xi and Ruinian Chen and Jia Leng and Yangen Hu and Ke Zeng and Shuai Liu and "
    "Huaiyu Wan",
    id="2505.18573",
    code="LiaoMengqi/E3-RL4LLMs",
)


class E3Temperature:
    """Hold the entropy of sampling at its initial value by adjusting only the temperature (Eq. 4 and 5).

        T <- T * (1 + T * ln(H* / H) / (ln V + ln ln V))

    V is the size of the vocabulary and H the mean entropy per token of a rollout at its temperature. The first
    `init_steps` rollouts only measure: H* is the mean of their entropies. Unlike an entropy bonus, this adds no
    gradient. T applies to sampling and to scoring, by the policy and by the reference.

    Annealing lowers H* over the last `annealing_ratio` of the run, from H0 at update q0 to g * H0 at update n, the
    last one:

        H* = H0 * (g + (1 - g) * (1 + cos(pi * (q - q0) / (n - q0))) / 2),   q0 = n - floor(annealing_ratio * n)

    As in the released code, each update uses the previous update's H*, and T has no bounds; vLLM rejects a T above 2.
    After update n, H* stays constant; the released cosine would rise again. An entropy that is not a positive number
    changes nothing and does not count.

    Use it to keep sampling diverse without touching the loss. It can't help once the policy itself has collapsed: a
    high temperature then adds noise.

    Args:
        vocab_size: V.
        temperature: the temperature at the start of the run.
        total_steps: n, the rollouts of the whole run; annealing needs it.
        target_entropy: H* in nats per token, instead of the measured one. The first `init_steps` rollouts still leave
            the temperature unchanged.
        init_steps: number of rollouts that only measure; 1 in the paper.
        annealing_ratio: `None` for no annealing; 0.4 in the released code.
        annealing_factor: g, the paper's eta; 0.9 in the released code.

    Raises:
        ValueError: `annealing_ratio` is set without `total_steps`, `init_steps` is 0 without `target_entropy`, or the
            target is not below ln V.
    """

    steers: ClassVar[str] = "temperature"

    def __init__(
        self,
        vocab_size: Annotated[int, "[2, inf)"],
        temperature: Annotated[float, "(0, inf)"] = 1.0,
        total_steps: Annotated[int, "[1, inf)"] | None = None,
        *,
        target_entropy: Annotated[float, "(0, inf)"] | None = None,
        init_steps: Annotated[int, "[0, inf)"] = 1,
        annealing_ratio: Annotated[float, "(0, 1]"] | None = None,
        annealing_factor: Annotated[float, "[0, 1]"] = 0.9,
    ) -> None:
        if annealing_ratio is not None and total_steps is None:
            raise ValueError(f"annealing_ratio={annealing_ratio!r} needs total_steps")
        if target_entropy is None and init_steps == 0:
            raise ValueError("init_steps=0 needs target_entropy, since no rollout measures it")
        if target_entropy is not None and target_entropy >= math.log(vocab_size):
            raise ValueError(
                f"target_entropy={target_entropy!r} cannot be reached: the entropy of {vocab_size} tokens is at most "
                f"{math.log(vocab_size):.4g}"
            )
        self.scale = math.log(vocab_size) + math.log(math.log(vocab_size))
        self.init_steps = init_steps
        self.annealing_factor = annealing_factor
        self.annealing_steps = int((total_steps or 0) * (annealing_ratio or 0.0))
        self.annealing_start = (total_steps or 0) - self.annealing_steps
        self.temperature = temperature
        self.initial_target = target_entropy
        self.initial_entropies: list[float] = []
        self.updates = 0

    @property
    def target_entropy(self) -> float | None:
        """H* for the next update, in nats per token; `None` until it is measured."""
        if self.initial_target is None or self.annealing_steps == 0 or self.updates <= self.init_steps:
            return self.initial_target
        progress = (self.updates - self.annealing_start) / self.annealing_steps
        cosine = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
        return self.initial_target * (self.annealing_factor + (1 - self.annealing_factor) * cosine)

    def update(self, measured: Mapping[str, float]) -> float:
        """Return the temperature of the next rollout, given the last one's `"entropy"`, the mean per token in nats."""
        entropy, target = measured["entropy"], self.target_entropy
        if not 0 < entropy < math.inf:
            return self.temperature
        self.updates += 1
        if self.updates <= self.init_steps:
            self.initial_entropies.append(entropy)
            return self.temperature
        if target is None:
            target = self.initial_target = sum(self.initial_entropies) / len(self.initial_entropies)
        self.temperature *= 1 + self.temperature * math.log(target / entropy) / self.scale
        return self.temperature

    def state_dict(self) -> dict[str, Any]:
        """Return the temperature, the initial target, the measured entropies and the number of updates."""
        return {
            "temperature": self.temperature,
            "initial_target": self.initial_target,
            "initial_entropies": list(self.initial_entropies),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what [`state_dict`] returned."""
        self.temperature = state["temperature"]
        self.initial_target = state["initial_target"]
        self.initial_entropies = list(state["initial_entropies"])
        self.updates = state["updates"]
