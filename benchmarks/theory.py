"""Compute the numbers of docs/theory.md from enumerable policies with exact gradients, and write them there.

    python benchmarks/theory.py            # writes the tables and the picture of the page; seconds on a CPU
    python benchmarks/theory.py --print    # prints the tables

The policy has two styles. With probability `share` it picks style H, where the metric is higher, and is right with
probability `high`; style L is right with probability `low`. Its parameters are the logits of these three. Every
group of G responses is counted with its probability, so nothing is sampled except where it says so.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from canon_trl.advantages import canon_advantage, dr_grpo_advantage

DOCUMENT = Path(__file__).parents[1] / "docs" / "theory.md"
PICTURE = DOCUMENT.parent / "images" / "lock_in.png"

# Rewards and metric, both (P, G), to advantages.
Estimator = Callable[[Tensor, Tensor], Tensor]


def dr_grpo(rewards: Tensor, metric: Tensor) -> Tensor:
    return dr_grpo_advantage(rewards)


def random_split(rewards: Tensor, metric: Tensor) -> Tensor:
    """Inter-group comparison of halves that have nothing to do with the metric: the order of the responses."""
    order = torch.arange(rewards.shape[1], dtype=rewards.dtype).expand_as(rewards)
    return canon_advantage(rewards, order, mu=1.0)


ESTIMATORS: dict[str, Estimator] = {
    "Inter": partial(canon_advantage, mu=1.0),
    "Dr.GRPO": dr_grpo,
    "Intra": partial(canon_advantage, mu=0.0),
    "Inter, random split": random_split,
}


@dataclass(frozen=True)
class Policy:
    """The probabilities of a policy with two styles."""

    share: float  # of style H
    high: float  # right answers of style H
    low: float  # of style L

    @property
    def accuracy(self) -> float:
        return self.share * self.high + (1 - self.share) * self.low

    def gradient(self) -> Tensor:
        """The exact policy gradient in the logits of share, high and low."""
        between = self.share * (1 - self.share) * (self.high - self.low)
        within = [p * q * (1 - q) for p, q in ((self.share, self.high), (1 - self.share, self.low))]
        return torch.tensor([between, *within], dtype=torch.float64)


@dataclass(frozen=True)
class Groups:
    """Groups of responses with their probabilities."""

    styles: Tensor  # (N, G), 1 for H
    right: Tensor  # (N, G), 1 for a right answer
    rewards: Tensor  # (N, G), as the verifier gives them
    probability: Tensor  # (N,)

    def estimates(self, policy: Policy, estimator: Estimator) -> Tensor:
        """The gradient estimate of every group, `(N, 3)`."""
        advantages = estimator(self.rewards, self.styles)
        scores = torch.stack(
            [
                self.styles - policy.share,
                self.styles * (self.right - policy.high),
                (1 - self.styles) * (self.right - policy.low),
            ],
            dim=-1,
        )
        return (advantages.unsqueeze(-1) * scores).mean(dim=1)


def every_group(policy: Policy, size: int, *, flip: float = 0.0) -> Groups:
    """Every group of `size` responses, with a verifier that is wrong about the share `flip` of them.

    Within a style, the order of the responses is as good as a random one.
    """
    kinds = {
        (style, right, right != wrong): (policy.share if style else 1 - policy.share)
        * (hit if right else 1 - hit)
        * (flip if wrong else 1 - flip)
        for style, hit in ((1, policy.high), (0, policy.low))
        for right in (1, 0)
        for wrong in ((1, 0) if flip else (0,))
    }
    members = torch.cartesian_prod(*[torch.arange(len(kinds))] * size)
    probability = torch.tensor(list(kinds.values()), dtype=torch.float64)[members].prod(dim=1)
    members = torch.tensor(list(kinds), dtype=torch.float64)[members]
    return Groups(*members.unbind(-1), probability=probability)


@cache
def _coefficients(name: str, size: int) -> list[tuple[int, float, float, float]]:
    """What `factors` needs of an estimator's coefficients, for each number of responses of style H."""
    found = []
    for count in range(size + 1):
        style = torch.zeros(size, dtype=torch.float64)
        style[:count] = 1
        # A reward of 1 for each response in turn gives the coefficients of A_i = sum_j c_ij r_j.
        coefficients = ESTIMATORS[name](torch.eye(size, dtype=torch.float64), style.expand(size, -1)).T
        advantages = coefficients @ style  # with rewards of 1 for H and 0 for L
        own = float(coefficients.diagonal().mean())
        found.append((math.comb(size, count), float(advantages @ style), float(advantages.sum()), own))
    return found


def factors(name: str, size: int, share: float) -> tuple[float, float]:
    """The factors by which an estimator that is linear in the rewards multiplies the parts B and W of the gradient."""
    between = within = 0.0
    for count, (ways, gain, total, own) in enumerate(_coefficients(name, size)):
        chance = ways * share**count * (1 - share) ** (size - count)
        between += chance * (gain - share * total)
        within += chance * own
    return between / (size * share * (1 - share)), within


def signal_to_noise(policy: Policy, estimator: Estimator, size: int, *, flip: float = 0.0) -> float:
    """Length of a group's mean gradient estimate over its standard deviation in a direction that does not matter.

    Such a direction has independent scores of variance 1, so the variance of the estimate is E[A^2] / G. Almost all
    directions of a language model are like this.
    """
    groups = every_group(policy, size, flip=flip)
    mean = groups.probability @ groups.estimates(policy, estimator)
    squares = estimator(groups.rewards, groups.styles).square().mean(dim=1)
    return float(mean.norm() / (groups.probability @ squares / size).sqrt())


def tilted_between(policy: Policy, alpha: float, size: int) -> float:
    """The mean gradient estimate of CANON-Eff in the logit of the share of H; above 0, H grows."""
    groups = every_group(policy, size)
    estimator = partial(canon_advantage, mu=1.0, alpha=alpha, alpha_group="higher")
    return float((groups.probability @ groups.estimates(policy, estimator))[0])


def indifferent_alpha(policy: Policy, size: int) -> float:
    """The alpha at which CANON-Eff neither favours H nor L, by bisection."""
    low, high = 0.01, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if tilted_between(policy, middle, size) > 0 else (middle, high)
    return (low + high) / 2


def lock_in(start: Policy, name: str, *, size: int, steps: int, rate: float, learning: float) -> list[float]:
    """Accuracies along exact gradient ascent where only style H can be learned, at `learning` times the rate."""
    policy, found = start, []
    for _ in range(steps):
        found.append(policy.accuracy)
        between, within = factors(name, size, policy.share)
        gradient = policy.gradient()
        policy = replace(
            policy,
            share=moved(policy.share, rate * between * float(gradient[0])),
            high=moved(policy.high, rate * learning * within * float(gradient[1])),
        )
    return found


def moved(probability: float, by: float) -> float:
    """Move the logit of a probability."""
    return 1 / (1 + (1 - probability) / probability * math.exp(-by))


def step_length(policy: Policy, estimator: Estimator, make: Callable[..., torch.optim.Optimizer]) -> float:
    """How far 200 steps on 8 sampled groups of 8 move the parameters of a fixed policy, over three seeds."""
    lengths = []
    groups = every_group(policy, 8)
    estimates = groups.estimates(policy, estimator)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = make([weights])
        for _ in range(200):
            drawn = torch.multinomial(groups.probability, 8, replacement=True, generator=generator)
            weights.grad = -estimates[drawn].mean(dim=0)
            optimizer.step()
        lengths.append(float(weights.detach().norm()))
    return sum(lengths) / len(lengths)


# --- the page ---


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


LINEAR = ("Inter", "Dr.GRPO", "Intra")


def factor_table() -> str:
    rows = []
    for share in (0.5, 0.2):
        for size in (4, 8, 16, 64):
            found = {name: factors(name, size, share) for name in LINEAR}
            cells = [f"{found[name][part]:.2f}" for part in (0, 1) for name in LINEAR]
            rows.append([f"{share:.0%}", str(size), *cells])
    return table(["share of H", "G", *(f"{part}, {name}" for part in "BW" for name in LINEAR)], rows)


# The policy, and the share of rewards that the verifier flips.
SETTINGS = {
    "the metric decides": (Policy(0.5, 0.99, 0.01), 0.0),
    "the metric decides, 35% flipped": (Policy(0.5, 0.99, 0.01), 0.35),
    "the metric explains the reward": (Policy(0.5, 0.8, 0.2), 0.0),
    "the metric explains the reward, 35% flipped": (Policy(0.5, 0.8, 0.2), 0.35),
    "the metric explains a little": (Policy(0.5, 0.6, 0.4), 0.0),
    "the metric explains a little, 35% flipped": (Policy(0.5, 0.6, 0.4), 0.35),
    "the metric explains nothing": (Policy(0.5, 0.5, 0.5), 0.0),
    "rewards are rare": (Policy(0.5, 0.04, 0.02), 0.0),
}


def signal_table() -> str:
    rows = []
    for name, (policy, flip) in SETTINGS.items():
        found = [signal_to_noise(policy, estimator, 6, flip=flip) for estimator in ESTIMATORS.values()]
        base = found[list(ESTIMATORS).index("Dr.GRPO")]
        rows.append([name, f"{base:.3f}", *(f"{value / base:.2f}" for value in found)])
    return table(["", "Dr.GRPO's signal-to-noise ratio", *(f"{name}, relative" for name in ESTIMATORS)], rows)


def alpha_table() -> str:
    rows = []
    for high, low in ((0.93, 0.89), (0.9, 0.6), (0.6, 0.3)):
        policy = Policy(0.5, high, low)
        cells = [f"{indifferent_alpha(policy, size):.3f}" for size in (4, 6)]
        rows.append([f"{high:.2f}", f"{low:.2f}", *cells, f"{low / high:.3f}"])
    return table(["m(H), longer", "m(L), shorter", "G = 4", "G = 6", "m(L) / m(H)"], rows)


OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    "SGD": partial(torch.optim.SGD, lr=1e-1),
}


def step_table() -> str:
    policy, _ = SETTINGS["the metric explains the reward"]
    rows = []
    for name, make in OPTIMIZERS.items():
        base = step_length(policy, dr_grpo, make)
        rows.append([name, *(f"{step_length(policy, ESTIMATORS[each], make) / base:.2f}" for each in LINEAR)])
    return table(["optimizer", *LINEAR], rows)


TRAP = Policy(share=0.5, high=0.19, low=0.4)
ASCENT = {"size": 16, "steps": 4000, "rate": 0.5, "learning": 0.1}


def lock_in_table() -> str:
    rows = []
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        start = replace(TRAP, share=share)
        ends = [lock_in(start, name, **ASCENT)[-1] for name in LINEAR]
        rows.append([f"{share:.0%}", f"{start.accuracy:.2f}", *(f"{end:.2f}" for end in ends)])
    return table(["share of H at the start", "accuracy at the start", *LINEAR], rows)


def draw(path: Path) -> None:
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    styles = {"Inter": ("#D55E00", "--"), "Dr.GRPO": ("#8A8A8A", "-"), "Intra": ("#0072B2", "-.")}
    for name, (color, line) in styles.items():
        axes.plot(lock_in(TRAP, name, **ASCENT), color=color, linestyle=line, label=name)
    axes.set(xlabel="steps of exact gradient ascent", ylabel="accuracy", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


TABLES = {
    "factors": factor_table,
    "signal": signal_table,
    "alpha": alpha_table,
    "steps": step_table,
    "lock_in": lock_in_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the tables and change no file")
    options = parser.parse_args()
    text = DOCUMENT.read_text() if not options.print else ""
    for name, make in TABLES.items():
        if options.print:
            print(f"{name}\n\n{make()}\n")
            continue
        block = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text = block.sub(partial(lambda table, _: table + "\n", make()), text, count=1)
    if not options.print:
        DOCUMENT.write_text(text)
        draw(PICTURE)


if __name__ == "__main__":
    main()
