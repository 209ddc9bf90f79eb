"""What was predicted of a difference before the runs, and whether the result agrees."""

from typing import Any

# The sign of the mean difference; 0: too small to see.
PREDICTIONS = {"higher": 1, "lower": -1, "none": 0}

Predictions = dict[str, dict[str, dict[str, str]]]  # task -> method -> metric -> prediction


def outcome(prediction: str, difference: dict[str, Any] | None) -> str:
    """Say whether a difference agrees with its prediction."""
    if difference is None or difference["low"] is None:
        return "not enough runs"
    sign = PREDICTIONS[prediction]
    if difference["is_noise"]:
        return "not decided" if sign else "none seen"  # which does not show that there is none
    return "as predicted" if difference["mean"] * sign > 0 else "against the prediction"


def add_outcomes(summary: dict[str, Any], predictions: Predictions) -> None:
    """Add to the methods of a summary what was predicted of their metrics, and the outcome."""
    for task, methods in predictions.items():
        for method, predicted in methods.items():
            row = summary.get(task, {}).get("methods", {}).get(method, {})
            for name, prediction in predicted.items():
                if name in row:
                    found = outcome(prediction, row[name].get("difference"))
                    row[name] |= {"prediction": prediction, "outcome": found}
