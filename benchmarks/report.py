"""Draw the pictures and fill in the tables of docs/speed.md from the numbers that `speed.py` wrote.

python benchmarks/report.py                                     # from benchmarks/results/speed_cpu.json
python benchmarks/report.py --results FILE --print              # from another file, to the terminal only
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gather_model import Network, choice_rounds, gathered_choice_bytes, rollout_bytes
from gathers import OURS, TRL, expected_bytes
from marked_parts import filled_in
from matplotlib.figure import Figure
from speed import RESULTS, described
from step_parts import PARTS
from step_time import METHODS, Workload

ROOT = Path(__file__).parents[1]
DOCUMENT, IMAGES = ROOT / "docs" / "speed.md", ROOT / "docs" / "images"
# The modelled network, 100 Gbit/s and 10 us, and what each rank samples.
MODELLED = Network(latency=10e-6, bandwidth=100e9 / 8)
MODELLED_RESPONSES, MODELLED_TOKENS = 16, 3072
MODELLED_RANKS = (8, 64, 256, 1024)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def amount(count: float) -> str:
    """Bytes in the unit that makes them short."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def step_times(found: Mapping[str, Any]) -> str:
    def cell(timing: Mapping[str, Any], method: str) -> str:
        if method not in timing["methods"]:
            return ""
        result = timing["methods"][method]
        lower, upper = result["quartiles"]
        return f"{result['median']:.2f} ({lower:.2f} to {upper:.2f}), {result['pairs']}"

    memory = found["memory"]["methods"]
    head = ["method", *(described(Workload(**timing["workload"])) for timing in found["step_time"])]
    rows = []
    measured = {name for timing in found["step_time"] for name in timing["methods"]}
    for method in (name for name in METHODS if name in measured):
        peak = memory.get(method)
        more = f"{peak['ratio']:.3f} ({peak['more_mib']:+.0f} MiB)" if peak else ""
        rows.append([f"`{method}`", *(cell(timing, method) for timing in found["step_time"]), more])
    return table([*head, f"peak memory, {described(Workload(**found['memory']['workload']))}"], rows)


def parts(found: Mapping[str, Any]) -> str:
    rows = []
    for measured in found["parts"]:
        for method, result in measured["methods"].items():
            whole = sum(result["seconds"].values())
            shares = [f"{seconds / whole:.1%}" for seconds in result["seconds"].values()]
            rows.append([Workload(**measured["workload"]).model, f"`{method}`", *shares])
    return table(["model", "method", *PARTS], rows)


def gathered(found: Mapping[str, Any]) -> str:
    """Collectives by method, group size and number of ranks, with one group per rank."""
    tokens, rows = found["gathers"]["tokens"], []
    for measured in found["gathers"]["measured"]:
        for step in measured["steps"]:
            ours, theirs = step[OURS], step[TRL]
            expected = expected_bytes(step["method"], step["group"], measured["ranks"], step["updates"], tokens)
            rows.append(
                [
                    f"`{step['method']}`",
                    str(step["group"]),
                    str(measured["ranks"]),
                    f"{ours['calls']:.0f}",
                    amount(ours["bytes"]),
                    amount(expected) if expected is not None and measured["ranks"] > 1 else "",
                    duration(ours["seconds"]),
                    f"{theirs['calls']:.0f}, {amount(theirs['bytes'])}, {duration(theirs['seconds'])}",
                ]
            )
    head = ["method", "group", "ranks", "our collectives", "sent per rank", "formula", "time"]
    return table([*head, "TRL's collectives, sent, time"], rows)


def checks(found: Mapping[str, Any]) -> str:
    model = found["gathers"]
    network = Network(*model["network"].values())
    fitted = f"{duration(network.latency)}, {network.bandwidth / 1e9:.2f} GB/s"
    rows = [[f"fitted to: all-gathers: 2 ranks, every other size ({fitted})", f"{model['fit_error']:.0%}"]]
    rows += [[f"checked on: {name}", f"{error:.0%}"] for name, error in model["errors"].items()]
    return table(["collectives", "median of abs(predicted / measured - 1)"], rows)


@dataclass(frozen=True)
class Modelled:
    """A modelled exchange; by the number of ranks, bytes that a rank sends, seconds, and bytes that it then holds."""

    name: str
    sent: Callable[[int], int]
    seconds: Callable[[int], float]
    held: Callable[[int], int]


def gathered_once(name: str, sent: int) -> Modelled:
    return Modelled(name, lambda ranks: sent, lambda ranks: MODELLED.seconds(ranks, sent), lambda ranks: ranks * sent)


def reduced_choice(name: str, policy_loss: str, seconds: Callable[[int, int], float]) -> Modelled:
    def rounds(ranks: int) -> list[int]:
        return choice_rounds(policy_loss, ranks * MODELLED_RESPONSES * MODELLED_TOKENS)

    def taken(ranks: int) -> float:
        return sum(seconds(ranks, size) for size in rounds(ranks))

    name = f"{name}, {len(rounds(MODELLED_RANKS[-1]))} all-reduces"
    return Modelled(name, lambda ranks: sum(rounds(ranks)), taken, lambda ranks: sum(rounds(ranks)))


MODELS = (
    gathered_once("rollout, one metric", rollout_bytes(MODELLED_RESPONSES, metrics=1)),
    gathered_once(
        "a choice that gathers tokens (previous method)", gathered_choice_bytes(MODELLED_RESPONSES, MODELLED_TOKENS)
    ),
    reduced_choice("Clip-Cov", "clip_cov", MODELLED.tree_reduce_seconds),
    reduced_choice("KL-Cov", "kl_cov", MODELLED.tree_reduce_seconds),
    reduced_choice("KL-Cov in a ring", "kl_cov", MODELLED.ring_reduce_seconds),
)


def modelled(found: Mapping[str, Any]) -> str:
    rows = []
    for model in MODELS:
        row = [f"{model.name}: {amount(model.sent(MODELLED_RANKS[-1]))} per rank"]
        row += [f"{duration(model.seconds(ranks))}, {amount(model.held(ranks))}" for ranks in MODELLED_RANKS]
        rows.append(row)
    return table(["time, and bytes then held per rank", *(f"{ranks:,} ranks" for ranks in MODELLED_RANKS)], rows)


def selected(found: Mapping[str, Any]) -> str:
    rows = []
    for name, result in found["selection"]["choices"].items():
        lower, upper = result["quartiles"]
        rows.append([name, f"{result['median']:.2f} ({lower:.2f} to {upper:.2f}), {result['pairs']}"])
    return table([f"choice among {found['selection']['tokens']:,} tokens", "time by digits / time by a sort"], rows)


def sampled(found: Mapping[str, Any]) -> str:
    rows = []
    for name, result in found["sampler"].items():
        lower, upper = result["quartiles"]
        rows.append([name, f"{result['median']:.2f} ({lower:.2f} to {upper:.2f}), {result['pairs']}"])
    return table(["responses", "rollouts per second, sampler / `generate`"], rows)


def made_with(found: Mapping[str, Any]) -> str:
    given = found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in given["versions"].items())
    machine = f"{given['device']}, {given['cores']} cores, {given['threads']} thread(s) per process"
    return (
        f"Made by `--preset {given['preset']}` in {given['minutes']:.0f} minutes on: {machine}; "
        f"Python {given['python']}, {versions}."
    )


SECTIONS = {"made_with": made_with, "step_times": step_times, "parts": parts, "sampled": sampled}
GATHER_SECTIONS = {"gathered": gathered, "checks": checks, "modelled": modelled, "selected": selected}


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    wanted = SECTIONS | (GATHER_SECTIONS if "gathers" in found else {})
    return {name: section(found) for name, section in wanted.items()}


def draw_parts(found: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10, 1.2 + 2.1 * len(found["parts"])), layout="constrained")
    panels = figure.subplots(len(found["parts"]), 1, squeeze=False)[:, 0]
    for axes, measured in zip(panels, found["parts"], strict=True):
        names = list(measured["methods"])
        whole = sum(measured["methods"][names[0]]["seconds"].values())
        start = [0.0] * len(names)
        for part, colour in zip(PARTS, ("C0", "C9", "C8", "C3", "C2", "C1", "C4", "0.75"), strict=True):
            widths = [100 * measured["methods"][name]["seconds"][part] / whole for name in names]
            axes.barh(names, widths, left=start, label=part, color=colour)
            start = [left + width for left, width in zip(start, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_title(described(Workload(**measured["workload"])), fontsize=11)
        axes.set_xlabel(f"time per step (a rollout and its updates), % of {names[0]}")
        axes.grid(axis="x", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10)
    figure.savefig(path, dpi=120)


def draw_gathers(found: Mapping[str, Any], path: Path) -> None:
    model = found["gathers"]
    network = Network(*model["network"].values())
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, ranks in enumerate(sorted({point[0] for point in model["points"]})):
        points = [point for point in model["points"] if point[0] == ranks]
        sizes = [sent for _, sent, *_ in points]
        measured = [1e3 * seconds for _, _, seconds, _ in points]
        left.plot(sizes, measured, "o", color=f"C{index}", label=f"{ranks} ranks, measured")
        predicted = [1e3 * network.seconds(ranks, sent) for sent in sizes]
        left.plot(sizes, predicted, color=f"C{index}", label=f"{ranks} ranks, modelled")
    left.set_title("one all-gather, gloo, this machine's 2 cores", fontsize=11)
    left.set_xlabel("bytes sent per rank")
    ranks = [2**power for power in range(1, 11)]
    for index, model in enumerate(MODELS):
        seconds = [1e3 * model.seconds(count) for count in ranks]
        label = f"{model.name}: {amount(model.sent(ranks[-1]))} per rank"
        right.plot(ranks, seconds, "--", color=f"C{index + 2}", label=label)
    right.set_title("modelled, not measured: 100 Gbit/s, 10 us", fontsize=11)
    right.set_xlabel("ranks")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylabel("milliseconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "speed_cpu.json")
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    options = parser.parse_args()
    found = json.loads(options.results.read_text())
    by_name = sections(found)
    if options.print:
        print("\n\n".join(by_name.values()))
        return
    DOCUMENT.write_text(filled_in(DOCUMENT.read_text(), by_name))
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_parts(found, IMAGES / "step_parts.png")
    draw_gathers(found, IMAGES / "gathers.png")


if __name__ == "__main__":
    main()
