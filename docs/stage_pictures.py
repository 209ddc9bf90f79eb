"""Draw the pictures of docs/stages: how the methods of a stage weight responses and tokens.

    python docs/stage_pictures.py

The numbers come from the methods themselves. The picture of the advantages has every estimator that reads only
rewards, so a new one joins by itself.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from pictures import BLUE, GREY, ORANGE, RED, Numbers, Picture, save_picture

from canon_trl.advantages import ESTIMATORS
from canon_trl.policy_losses import dppo_weights, up_weights
from canon_trl.token_advantages import entropy_shaped

FOLDER = Path(__file__).parent / "images" / "stages"
SIZE = 16
COLUMNS = 4


# --- advantages ---


def advantages_numbers() -> Numbers:
    """The advantages of right and wrong responses in a group of 16, by the number of right ones."""
    right = torch.arange(1, SIZE)
    zero_one = (torch.arange(SIZE) < right.unsqueeze(1)).float()
    found = {}
    for name, method in ESTIMATORS.items():
        if set(method.reads) != {"rewards"}:
            continue
        # Rewards of -1 and 1 for the methods that allow no others.
        signed = method.reward_range is not None and "-1" in str(method.reward_range)
        rewards = 2 * zero_one - 1 if signed else zero_one
        given = {"k": 4} if name == "pass_at_k" else {}
        values = method.function(rewards, **given)
        found["pass_at_k, k = 4" if given else name] = {
            "right": values[:, 0].tolist(),
            "wrong": values[:, -1].tolist(),
        }
    return {"count": right.tolist(), "methods": found}


def draw_advantages(figure: Figure, numbers: Numbers) -> None:
    methods = numbers["methods"]
    rows = -(-len(methods) // COLUMNS)
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).flatten()
    base = methods["dr_grpo"]
    for axes, (name, values) in zip(grid, methods.items(), strict=False):
        for side, colour, marker in (("right", BLUE, "o"), ("wrong", ORANGE, "s")):
            axes.plot(numbers["count"], base[side], color=GREY, lw=3, alpha=0.5)
            axes.plot(numbers["count"], values[side], color=colour, marker=marker, ms=3, lw=1, label=side)
        axes.axhline(0, color="black", lw=0.5)
        axes.set_title(name)
        axes.set_xticks([1, 8, 15])
    for axes in grid[len(methods) :]:
        axes.set_visible(False)
    grid[0].legend()
    figure.supxlabel("number of right responses in a group of 16", fontsize=9)
    figure.supylabel("advantage; the grey lines are Dr.GRPO's", fontsize=9)


# --- policy losses ---


def policy_losses_numbers() -> Numbers:
    """The factor on A * grad(log p) of one token, by its ratio, in PPO with clip 0.2, UP, and DPPO."""
    ratio = torch.linspace(0.2, 2.2, 81).unsqueeze(0)
    found = {}
    for sign in (1.0, -1.0):
        advantages = torch.full_like(ratio, sign)
        ppo = torch.where((ratio > 1.2) if sign > 0 else (ratio < 0.8), 0.0, ratio)
        curves = {"PPO, clip 0.2": ppo}
        for old in (0.05, 0.4):
            old_log_probs = torch.full_like(ratio, old).log()
            log_probs = old_log_probs + ratio.log()
            weights = dppo_weights(log_probs, old_log_probs, advantages)
            curves[f"DPPO, p(old) = {old:g}"] = weights * ratio
        # UP leaves wrong tokens to PPO's lower clip.
        up = up_weights(ratio.log(), torch.zeros_like(ratio), advantages) * ratio
        curves["UP"] = up if sign > 0 else torch.where(ratio < 0.8, 0.0, up)
        found["A > 0" if sign > 0 else "A < 0"] = {name: curve[0].tolist() for name, curve in curves.items()}
    return {"ratio": ratio[0].tolist(), "sides": found}


def draw_policy_losses(figure: Figure, numbers: Numbers) -> None:
    styles = [(GREY, "-", 3.0), (BLUE, "--", 1.5), (ORANGE, "-.", 1.5), (RED, ":", 2.0)]
    for axes, (side, curves) in zip(figure.subplots(1, 2, sharey=True), numbers["sides"].items(), strict=True):
        for (name, curve), (colour, line, width) in zip(curves.items(), styles, strict=True):
            axes.plot(numbers["ratio"], curve, color=colour, linestyle=line, lw=width, label=name)
        axes.set_title(side)
        axes.set_xlabel("ratio of the token: p / p(old)")
    figure.axes[0].set_ylabel("factor on A * grad(log p)")
    figure.axes[0].legend()


# --- token advantages ---


def token_advantages_numbers() -> Numbers:
    """The entropy-shaped advantage of a token by its entropy."""
    entropies = torch.linspace(0, 3, 61).unsqueeze(0)
    shaped = {
        f"A = {value:+g}": entropy_shaped(torch.full_like(entropies, value), entropies)[0].tolist()
        for value in (1.0, 0.5, -0.5, -1.0)
    }
    return {"entropy": entropies[0].tolist(), "shaped": shaped}


def draw_token_advantages(figure: Figure, numbers: Numbers) -> None:
    axes = figure.subplots()
    styles = zip(numbers["shaped"].items(), (BLUE, BLUE, ORANGE, ORANGE), ("-", "--", "--", "-"), strict=True)
    for (name, values), colour, line in styles:
        axes.plot(numbers["entropy"], values, color=colour, linestyle=line, label=name)
    axes.axhline(0, color="black", lw=0.5)
    axes.set_xlabel("entropy of the token (nats)")
    axes.set_ylabel("shaped advantage")
    axes.legend(ncols=2)


PICTURES = {
    "advantages": Picture(advantages_numbers, draw_advantages, 6.4),
    "policy_losses": Picture(policy_losses_numbers, draw_policy_losses, 3.2),
    "token_advantages": Picture(token_advantages_numbers, draw_token_advantages, 2.8),
}


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        print(save_picture(picture, FOLDER / f"{name}.png"))
