"""The numbers of an evaluation as a table."""

from typing import Any


def as_table(summary: dict[str, dict[str, Any]]) -> str:
    """Return the summary for readers: one row per benchmark, and notes below."""
    rows = {name: shown(numbers) for name, numbers in summary.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| benchmark | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |" for name, row in rows.items()
    ]
    for name, numbers in summary.items():
        lines += ["", f"**{name}**: {numbers['settings']['model']}; {'; '.join(notes(numbers))}."]
    return "\n".join(lines)


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    def interval(low: float | None, high: float | None) -> str:
        return "" if low is None else f" ({low:.3f} to {high:.3f})"

    def number(value: float | None, digits: int = 1) -> str:
        return "none" if value is None else f"{value:.{digits}f}"

    row = {"prompts": str(numbers["num_prompts"]), "n": str(numbers["num_samples"])}
    row["avg@n"] = f"{numbers['avg']:.3f}" + interval(**numbers["avg_interval"])
    for kind in ("pass", "majority"):
        for k, estimate in (numbers[f"{kind}_at_k"] or {}).items():
            row[f"{kind}@{k}"] = f"{estimate['mean']:.3f}" + interval(estimate["low"], estimate["high"])
    for kind in ("right", "wrong"):
        mean, median = numbers[f"length_{kind}"], numbers[f"median_length_{kind}"]
        row[f"tokens per {kind} response, mean (median)"] = f"{number(mean)} ({number(median)})"
    row["truncated"] = number(numbers["truncated"], 3)
    row["entropy (nats)"] = number(numbers["entropy"], 4)
    row["tokens per right answer"] = number(numbers["tokens_per_right_answer"])
    return row


def notes(numbers: dict[str, Any]) -> list[str]:
    settings = numbers["settings"]
    lines = [
        f"temperature {settings['temperature']}, top_p {settings['top_p']}, top_k {settings['top_k']}, at most "
        f"{settings['max_completion_length']} tokens, seed {settings['seed']}",
        f"{settings['confidence']:.0%} intervals over prompts in brackets",
        f"entropy: {numbers['entropy_is']}",
    ]
    estimates = [numbers["avg_interval"], *numbers["pass_at_k"].values(), *(numbers["majority_at_k"] or {}).values()]
    if any(estimate["low"] is None for estimate in estimates):
        lines.append("no interval if all prompts have the same share, neither 0 nor 1: there is no spread to resample")
    if numbers["majority_at_k"] is None:
        lines.append("no majority vote: no answer_extractor was given")
    for kind in ("prompts", "responses"):
        if numbers[f"unscored_{kind}"]:
            effect = {"prompts": "left out: no response could be scored", "responses": "not scored, so not right"}[
                kind
            ]
            lines.append(f"{numbers[f'unscored_{kind}']} {kind} {effect}")
    return lines
