"""Draw the pictures of docs/methods from numbers that the package's own functions compute.

    python docs/pictures.py

Every picture has a function that computes its numbers, which the tests check against values worked out by hand, and
one that draws it.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from datasets import Dataset
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from canon_trl.advantages import (
    a_grae_advantage,
    canon_advantage,
    dr_grpo_advantage,
    grpo_advantage,
    inter_group_advantage,
    intra_group_advantage,
    nsr_advantage,
    opo_advantage,
    optimal_value,
    psr_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    split_by_metric,
    w_reinforce_advantage,
)
from canon_trl.policy_losses import astar_po_loss, clip_cov_mask, kl_cov_mask, token_covariance
from canon_trl.sampling import DynamicSampling, PromptStream, group_verdicts
from canon_trl.sampling.group_collector import GroupCollector, SampledBatch, SampledResponse

FOLDER = Path(__file__).parent / "images" / "methods"
WIDTH = 7.2  # inches; on a page 700 pixels wide, 9-point letters are 12 pixels high

# The palette of Okabe and Ito, which people with any kind of colour vision can distinguish.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8A8A"

Numbers = dict[str, Any]


class Picture(NamedTuple):
    numbers: Callable[[], Numbers]
    draw: Callable[[Figure, Numbers], None]
    height: float  # inches


# --- CANON ---


def canon_numbers() -> Numbers:
    """A group of 8 in which low entropy pays, sorted by it."""
    entropy = torch.tensor([[0.21, 0.28, 0.33, 0.41, 0.52, 0.60, 0.74, 0.88]])
    rewards = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    higher = split_by_metric(entropy)
    return {
        "entropy": entropy[0].tolist(),
        "rewards": rewards[0].tolist(),
        "higher": higher[0].tolist(),
        "lower_mean": rewards[~higher].mean().item(),
        "higher_mean": rewards[higher].mean().item(),
        "inter": inter_group_advantage(rewards, higher)[0].tolist(),
        "intra": intra_group_advantage(rewards, higher)[0].tolist(),
        "mixed": canon_advantage(rewards, entropy, mu=0.5)[0].tolist(),
    }


def draw_canon(figure: Figure, numbers: Numbers) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    places = range(8)
    for axes in (above, below):
        axes.axvspan(-0.5, 3.5, color=BLUE, alpha=0.08, lw=0)
        axes.axvspan(3.5, 7.5, color=ORANGE, alpha=0.13, lw=0)
    for place, reward in zip(places, numbers["rewards"], strict=True):
        colour, marker = (GREEN, "o") if reward else (RED, "X")
        above.plot(place, reward, marker, color=colour, ms=9, zorder=3)
    for first, mean, name in ((0, numbers["lower_mean"], "m(L)"), (4, numbers["higher_mean"], "m(H)")):
        above.hlines(mean, first - 0.45, first + 3.45, color="black", lw=1.5)
        above.text(first + 2.9, mean + 0.04, f"{name} = {mean:g}", fontsize=9, ha="center", va="bottom")
    arrow = {"arrowstyle": "<-", "lw": 1.8}
    above.plot([0.22, 3.55], [numbers["higher_mean"]] * 2, ":", color=PURPLE, lw=1)
    above.annotate("", (0.22, numbers["higher_mean"]), (0.22, 1), arrowprops=arrow | {"color": PURPLE})
    above.annotate("", (-0.22, numbers["lower_mean"]), (-0.22, 1), arrowprops=arrow | {"color": BLUE})
    above.text(0.28, 0.4, f"inter {numbers['inter'][0]:+g}", color=PURPLE, fontsize=9)
    above.text(-0.42, 0.58, f"intra\n{numbers['intra'][0]:+g}", color=BLUE, fontsize=9, va="center")
    above.set_ylim(-0.2, 1.35)
    above.set_yticks([0, 1], ["wrong 0", "right 1"])
    above.set_ylabel("reward")
    above.text(1.5, 1.17, "lower half L", ha="center", fontsize=9)
    above.text(5.5, 1.17, "higher half H", ha="center", fontsize=9)
    shown = (("inter", PURPLE, "inter-group (mu = 1)"), ("intra", BLUE, "intra-group (mu = 0)"))
    shown += (("mixed", GREY, "their mean (mu = 0.5), Dr.GRPO"),)
    for offset, (key, colour, label) in zip((-0.27, 0, 0.27), shown, strict=True):
        below.bar([place + offset for place in places], numbers[key], 0.25, color=colour, label=label)
    below.axhline(0, color="black", lw=0.8)
    below.set_xlim(-0.5, 7.5)
    below.set_ylim(-0.95, 1.25)
    below.set_ylabel("advantage (reward units)")
    below.set_xticks(places, [f"{value:.2f}" for value in numbers["entropy"]])
    below.set_xlabel("the 8 responses to one prompt, sorted by mean token entropy (nats)")
    below.legend(ncols=3, loc="upper center")


# --- GRPO, Dr.GRPO, RLOO, REINFORCE++ with baseline ---

GROUP_RELATIVE = {
    "GRPO": (BLUE, "o"),
    "Dr.GRPO": (GREY, "s"),
    "RLOO": (ORANGE, "^"),
    "REINFORCE++ baseline": (RED, "D"),
}


def group_relative_numbers() -> Numbers:
    """A batch of 7 groups of 8 with 1 to 7 right responses; all responses are equally long."""
    rewards = (torch.arange(8) < torch.arange(1, 8).unsqueeze(1)).float()
    advantages = {
        "GRPO": grpo_advantage(rewards),
        "Dr.GRPO": dr_grpo_advantage(rewards),
        "RLOO": rloo_advantage(rewards),
        "REINFORCE++ baseline": reinforce_pp_baseline_advantage(rewards, torch.full_like(rewards, 100)),
    }
    right = {name: values[:, 0].tolist() for name, values in advantages.items()}
    wrong = {name: values[:, -1].tolist() for name, values in advantages.items()}
    return {"count": list(range(1, 8)), "right": right, "wrong": wrong}


def draw_group_relative(figure: Figure, numbers: Numbers) -> None:
    for axes, side in zip(figure.subplots(1, 2), ("right", "wrong"), strict=True):
        for name, (colour, marker) in GROUP_RELATIVE.items():
            axes.plot(numbers["count"], numbers[side][name], marker=marker, ms=5, color=colour, label=name)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_title(f"a {side} response")
        axes.set_xlabel("right responses of the 8 in the group")
        axes.set_ylabel("advantage")
        axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


# --- OPO ---


def opo_numbers() -> Numbers:
    """Left: 4 right and 4 wrong responses, the wrong ones of 100 tokens. Right: one group of different lengths."""
    rewards = torch.tensor([[1.0] * 4 + [0.0] * 4])
    ratio = torch.logspace(-1, 1, 41, base=10.0)
    lengths = torch.cat([100 * ratio.unsqueeze(1).expand(-1, 4), torch.full((41, 4), 100.0)], dim=1)
    many = rewards.expand(41, -1)
    group, tokens = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[100, 200, 300, 600]])
    return {
        "ratio": ratio.tolist(),
        "opo_baseline": (many - opo_advantage(many, lengths))[:, 0].tolist(),
        "mean": (many - dr_grpo_advantage(many))[:, 0].tolist(),
        "rewards": group[0].tolist(),
        "tokens": tokens[0].tolist(),
        "opo": opo_advantage(group, tokens)[0].tolist(),
        "dr_grpo": dr_grpo_advantage(group)[0].tolist(),
    }


def draw_opo(figure: Figure, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    left.semilogx(numbers["ratio"], numbers["opo_baseline"], color=RED, lw=2, label="OPO, weighted by length")
    left.semilogx(numbers["ratio"], numbers["mean"], "--", color=GREY, lw=2, label="mean of the group")
    left.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    left.set_xlabel("length of the right over that\nof the wrong responses (4 each)")
    left.set_ylabel("baseline (reward units)")
    left.set_ylim(0, 1)
    left.grid(alpha=0.3)
    left.legend(loc="upper left")
    starts = [sum(numbers["tokens"][:index]) for index in range(4)]
    widths = numbers["tokens"]
    right.bar(starts, numbers["opo"], widths, align="edge", color=RED, alpha=0.75, ec="white", label="OPO")
    right.bar(
        starts, numbers["dr_grpo"], widths, align="edge", fill=False, ec="black", ls="--", lw=1.3, label="Dr.GRPO"
    )
    right.axhline(0, color="black", lw=0.8)
    for start, width, reward in zip(starts, widths, numbers["rewards"], strict=True):
        right.text(start + width / 2, 0.92, "right" if reward else "wrong", ha="center", fontsize=8)
        right.text(start + width / 2, -0.72, str(width), ha="center", fontsize=8)
    right.set_ylim(-0.8, 1.05)
    right.set_xlim(0, sum(widths))
    right.set_xlabel("tokens: a bar is a response,\nas wide as it is long")
    right.set_ylabel("advantage (reward units)")
    right.legend(loc="center right", bbox_to_anchor=(1, 0.72))


# --- A-GRAE ---

STAGES = (0.1, 0.5, 0.9)


def a_grae_numbers() -> Numbers:
    """The advantage of A-GRAE divided by that of GRPO, for groups of 16 in a batch with mean accuracy q."""
    rewards = (torch.arange(16) < torch.arange(1, 16).unsqueeze(1)).double()
    numbers: Numbers = {"accuracy": rewards.mean(dim=1).tolist(), "right": {}, "wrong": {}}
    for q in STAGES:
        weights = []
        for group in rewards:
            # Groups without spread have advantage 0; a hundred of them bring the mean of the batch to q.
            others = torch.full((100, 16), q + (q - group.mean().item()) / 100, dtype=torch.float64)
            batch = torch.cat([group.unsqueeze(0), others])
            weights.append((a_grae_advantage(batch) / grpo_advantage(batch))[0])
        numbers["right"][q] = [weight[0].item() for weight in weights]
        numbers["wrong"][q] = [weight[-1].item() for weight in weights]
    return numbers


def draw_a_grae(figure: Figure, numbers: Numbers) -> None:
    for axes, side in zip(figure.subplots(1, 2, sharey=True), ("right", "wrong"), strict=True):
        for q, colour, marker in zip(STAGES, (ORANGE, GREEN, BLUE), "o^s", strict=True):
            axes.semilogy(numbers["accuracy"], numbers[side][q], marker=marker, ms=4, color=colour, label=f"q = {q:g}")
        axes.axhline(1, color="black", ls="--", lw=1.2, label="GRPO")
        axes.set_title(f"a {side} response")
        axes.set_xlabel("accuracy p of its group")
        axes.set_xlim(0, 1)
        axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.label_outer()
    figure.axes[0].set_ylabel("advantage over that of GRPO (factor)")
    figure.axes[1].legend(title="accuracy of the batch", title_fontsize=8, loc="lower center")


# --- PSR, NSR, W-REINFORCE ---


def reinforce_numbers() -> Numbers:
    """The advantages of a right and a wrong response, and their sums over a group of 8 by its accuracy."""
    pair = torch.tensor([[1.0, 0.0]])
    methods = {
        "PSR": psr_advantage(pair),
        "NSR": nsr_advantage(pair),
        "W-REINFORCE, w = 0.1": w_reinforce_advantage(pair),
        "REINFORCE, w = 1": w_reinforce_advantage(pair, positive_weight=1.0),
    }
    groups = (torch.arange(8) < torch.arange(9).unsqueeze(1)).float()
    pulls = {}
    for name, advantages in (("W-REINFORCE", w_reinforce_advantage(groups)), ("Dr.GRPO", dr_grpo_advantage(groups))):
        right = advantages.clamp(min=0).mean(dim=1).tolist()
        wrong = advantages.clamp(max=0).mean(dim=1).tolist()
        pulls[name] = {"right": right, "wrong": wrong}
    bars = {name: values[0].tolist() for name, values in methods.items()}
    return {"bars": bars, "count": list(range(9)), "pulls": pulls}


def draw_reinforce(figure: Figure, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    for offset, (index, colour, label) in zip((-0.19, 0.19), ((0, GREEN, "right"), (1, RED, "wrong")), strict=True):
        heights = [pair[index] for pair in numbers["bars"].values()]
        bars = left.bar(
            [place + offset for place in range(4)], heights, 0.36, color=colour, label=f"a {label} response"
        )
        left.bar_label(bars, [f"{height:g}" for height in heights], fontsize=8, padding=2)
    left.axhline(0, color="black", lw=0.8)
    left.set_xticks(range(4), ["PSR", "NSR", "W-\nREINFORCE\nw = 0.1", "REINFORCE\nw = 1"], fontsize=8)
    left.set_ylim(-1.25, 1.75)
    left.set_ylabel("advantage (reward units)")
    left.legend(loc="upper center")
    for name, colour, marker in (("W-REINFORCE", PURPLE, "o"), ("Dr.GRPO", GREY, "s")):
        for side, style in (("right", "-"), ("wrong", "--")):
            label = f"{name}, {side} responses"
            values = numbers["pulls"][name][side]
            right.plot(numbers["count"], values, style, marker=marker, ms=4, color=colour, label=label)
    right.axhline(0, color="black", lw=0.8)
    right.set_ylim(-1.05, 1.15)
    right.set_xlabel("right responses of the 8 in the group")
    right.set_ylabel("sum of their advantages / 8")
    right.grid(alpha=0.3)
    right.legend(loc="upper right")


# --- Clip-Cov, KL-Cov ---

SHARE = 0.02  # a hundred times Clip-Cov's default and ten times KL-Cov's, to make the selection visible
LOW, HIGH = 1.0, 5.0


def covariance_numbers() -> Numbers:
    """Tokens drawn at random: 32 groups of 8 with 4 tokens per response, most of them nearly certain."""
    generator = torch.Generator().manual_seed(0)
    accuracy = torch.rand(32, 1, generator=generator)
    rewards = (torch.rand(32, 8, generator=generator) < accuracy).float()
    advantages = grpo_advantage(rewards).flatten().unsqueeze(1).expand(-1, 4)
    log_probs = -0.4 * torch.rand(256, 4, generator=generator).clamp(min=1e-6).log().square()
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    clip = {"ratio": SHARE, "low": LOW, "high": HIGH, "epsilon_low": 1.0, "epsilon_high": 1.0}
    clip_cov = clip_cov_mask(log_probs, log_probs, advantages, mask, generator=generator, **clip)
    kl_cov = kl_cov_mask(log_probs, advantages, mask, fraction=SHARE)
    flat = {"log_probs": log_probs, "advantages": advantages, "clip_cov": clip_cov, "kl_cov": kl_cov}
    flat["covariance"] = token_covariance(log_probs, advantages, mask)
    return {name: values.flatten().tolist() for name, values in flat.items()}


def draw_covariance(figure: Figure, numbers: Numbers) -> None:
    log_probs, advantages = torch.tensor(numbers["log_probs"]), torch.tensor(numbers["advantages"])
    # Responses of a group share their advantages; shifting points by up to 0.04 keeps them distinguishable.
    shown = advantages + 0.04 * (2 * torch.rand(advantages.shape, generator=torch.Generator().manual_seed(1)) - 1)
    panels = (
        ("clip_cov", ORANGE, "Clip-Cov: these lose their gradient"),
        ("kl_cov", BLUE, "KL-Cov: these pay for moving"),
    )
    for axes, (name, colour, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        selected = torch.tensor(numbers[name])
        axes.scatter(log_probs[~selected], shown[~selected], s=5, color=GREY, alpha=0.5, lw=0)
        axes.scatter(log_probs[selected], shown[selected], s=26, color=colour, ec="black", lw=0.6, zorder=3)
        if name == "clip_cov":
            draw_equal_covariance(axes, log_probs.mean().item(), advantages.mean().item())
        axes.set_title(title)
        axes.set_xlim(-10.2, 0.3)
        axes.set_ylim(-2.7, 2.7)
        axes.set_xlabel("log-probability of the token (nats)")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("advantage")


def draw_equal_covariance(axes: Axes, mean_log_prob: float, mean_advantage: float) -> None:
    for bound, style in ((LOW, "--"), (HIGH, "-")):
        for side in (-1, 1):
            away = side * torch.linspace(0.05, 12, 400)
            label = f"covariance {bound:g}" if side == 1 else None
            x, y = mean_log_prob + away, mean_advantage + bound / away
            axes.plot(x, y, style, color="black", lw=1, label=label)
    axes.legend(loc="upper left")


# --- Dynamic sampling ---

WANTED, GROUP = 8, 4


def dynamic_sampling_numbers() -> Numbers:
    """What a trainer's collector does with prompts, given their numbers of right responses."""
    right = [4, 2, 0, 3, 1, 4, 2, 3, 0, 1, 4, 0, 2, 3, 1]
    prompts = Dataset.from_dict({"right": right})
    options = DynamicSampling()
    collector = GroupCollector(
        options,
        Accelerator(cpu=True),
        PromptStream(prompts.select(range(WANTED, len(right))), seed=0, shuffle=False),
        group_size=GROUP,
        accuracy_index=0,
    )
    rounds = []

    def sample(rows: list[dict[str, Any]]) -> SampledBatch:
        counts = torch.tensor([row["right"] for row in rows[::GROUP]])
        rewards = (torch.arange(GROUP) < counts.unsqueeze(1)).float()
        spread, _ = group_verdicts(rewards, rewards, lower=options.lower, upper=options.upper)
        rounds.append({"right": counts.tolist(), "spread": spread.tolist()})
        return SampledBatch([SampledResponse(row, {}) for row in rows], rewards.view(-1, 1))

    first = [dict(prompts[index]) for index in range(WANTED) for _ in range(GROUP)]
    batch = collector.collect(first, sample, reward_weights=torch.ones(1))
    trained = [response.row["right"] for response in batch.responses[::GROUP]]
    return {"rounds": rounds, "trained": trained, "statistics": collector.statistics}


def draw_dynamic_sampling(figure: Figure, numbers: Numbers) -> None:
    axes = figure.subplots()
    found = 0
    for line, sampled in enumerate(numbers["rounds"]):
        for place, (right, spread) in enumerate(zip(sampled["right"], sampled["spread"], strict=True)):
            found += spread
            colour, style = (GREY, ":") if not spread else (BLUE, "-") if found <= WANTED else (ORANGE, "--")
            box = {"fc": "white" if colour == GREY else colour, "alpha": 0.22, "lw": 0}
            axes.add_patch(Rectangle((place - 0.44, line - 0.36), 0.88, 0.72, **box))
            axes.add_patch(Rectangle((place - 0.44, line - 0.36), 0.88, 0.72, fill=False, ec=colour, ls=style, lw=1.8))
            for response in range(GROUP):
                marker, mark = ("o", GREEN) if response < right else ("X", RED)
                axes.plot(place - 0.3 + 0.2 * response, line - 0.12, marker, color=mark, ms=6)
            fate = "no spread" if not spread else "trained on" if found <= WANTED else "surplus"
            axes.text(place, line + 0.2, fate, ha="center", va="center", fontsize=8)
    groups = [f"round {line + 1}\n{len(sampled['right'])} prompts" for line, sampled in enumerate(numbers["rounds"])]
    axes.set_yticks(range(len(groups)), groups)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_xlim(-0.55, WANTED - 0.45)
    axes.set_ylim(len(groups) - 0.55, -0.5)
    axes.set_xlabel(f"prompt groups of {GROUP} responses (circle: right, cross: wrong); a batch is {WANTED} groups")
    for side in axes.spines.values():
        side.set_visible(False)


# --- A*-PO ---

PASS_RATES = (0.125, 0.5, 0.875)
BETA_2 = 1e-3


def astar_po_numbers() -> Numbers:
    """V* of three prompts over beta_1, and the loss of a right and a wrong answer to the second at beta_1 = 0.5."""
    rewards = (torch.arange(8) < torch.tensor(PASS_RATES).unsqueeze(1) * 8).double()
    betas = torch.logspace(-2, 2, 81, base=10.0, dtype=torch.float64).tolist()
    values = torch.stack([optimal_value(rewards, beta=beta) for beta in betas])
    value = optimal_value(rewards[1:2], beta=0.5).item()
    log_ratio = torch.linspace(-1500, 1000, 101, dtype=torch.float64)
    reference, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    losses = {}
    for label, reward in (("right", 1.0), ("wrong", 0.0)):
        advantage = torch.tensor([reward - value], dtype=torch.float64)
        losses[label] = [
            astar_po_loss(ratio.view(1, 1), reference, advantage, mask, beta=BETA_2).item() for ratio in log_ratio
        ]
    by_pass_rate = dict(zip(PASS_RATES, values.T.tolist(), strict=True))
    return {"beta": betas, "value": by_pass_rate, "v_star": value, "log_ratio": log_ratio.tolist(), "loss": losses}


def draw_astar_po(figure: Figure, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    for pass_rate, colour, style in zip(PASS_RATES, (RED, GREEN, BLUE), ("-", "--", "-."), strict=True):
        left.semilogx(numbers["beta"], numbers["value"][pass_rate], style, color=colour, lw=2)
        left.text(110, pass_rate, f"{8 * pass_rate:g} of 8", color=colour, fontsize=9, va="center")
    left.axvline(0.5, color="black", ls=":", lw=1.2)
    left.text(0.56, 1.06, "default 0.5", fontsize=8, va="center")
    left.set_xlim(0.01, 900)
    left.set_ylim(0, 1.12)
    left.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    left.set_xlabel("beta_1 (reward units)")
    left.set_ylabel("optimal value V* of a prompt\n(reward units)")
    left.set_title("from the best reward to the mean")
    left.grid(alpha=0.3)
    for label, colour, style in (("right", GREEN, "-"), ("wrong", RED, "--")):
        losses = numbers["loss"][label]
        right.plot(numbers["log_ratio"], losses, style, color=colour, lw=2, label=f"a {label} answer")
        target = (float(label == "right") - numbers["v_star"]) / BETA_2
        right.plot(target, 0, "v", color=colour, ms=8, clip_on=False, zorder=4)
    right.axvline(0, color="black", ls=":", lw=1.2)
    right.text(-30, 1.2, "start", fontsize=8, ha="right")
    right.set_xlim(-1500, 1000)
    right.set_ylim(0, 1.6)
    right.set_xlabel("log-ratio of the response to the reference,\nsummed over its tokens (nats)")
    right.set_ylabel("loss (squared reward units)")
    right.set_title(f"V* = {numbers['v_star']:.2f}, beta_2 = {BETA_2:g}")
    right.grid(alpha=0.3)
    right.legend(loc="upper center", bbox_to_anchor=(0.48, 1))


PICTURES = {
    "canon": Picture(canon_numbers, draw_canon, 4.2),
    "group_relative": Picture(group_relative_numbers, draw_group_relative, 3.2),
    "opo": Picture(opo_numbers, draw_opo, 3.2),
    "a_grae": Picture(a_grae_numbers, draw_a_grae, 3.2),
    "reinforce": Picture(reinforce_numbers, draw_reinforce, 3.4),
    "covariance": Picture(covariance_numbers, draw_covariance, 3.4),
    "dynamic_sampling": Picture(dynamic_sampling_numbers, draw_dynamic_sampling, 2.8),
    "astar_po": Picture(astar_po_numbers, draw_astar_po, 3.3),
}


def save_picture(picture: Picture, path: Path) -> Path:
    """Draw a picture and save it; the folder is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"font.size": 9, "legend.fontsize": 8, "axes.titlesize": 9}):
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained")
        picture.draw(figure, picture.numbers())
        drawn = BytesIO()
        figure.savefig(drawn, dpi=130)
    Image.open(drawn).convert("RGB").quantize(colors=96, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        print(save_picture(picture, FOLDER / f"{name}.png"))
