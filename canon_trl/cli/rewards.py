"""The reward functions that a recipe names."""

from collections.abc import Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from canon_trl.imports import is_import_path, load_function
from canon_trl.tasks import TASKS
from canon_trl.tasks.noise import flipped, measured

if TYPE_CHECKING:
    from canon_trl.cli.arguments import RecipeArguments


@wraps(reasoning_accuracy_reward)
def reasoning_reward(completions: list, solution: Sequence[str | None], **kwargs: Any) -> list[float | None]:
    # TRL's function gives 0 to unfinished reasoning even if the reference answer is missing.
    rewards = reasoning_accuracy_reward(completions=completions, solution=solution, **kwargs)
    return [None if right is None else reward for right, reward in zip(solution, rewards, strict=True)]


REWARDS = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_reward,
    "think_format_reward": think_format_reward,
}

NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward")


def reward_functions(recipe: "RecipeArguments", max_completion_length: int) -> list[Any]:
    """Return the reward functions; a recipe gives a name, an import path, or `model:` and the name of a model."""
    if recipe.reward_funcs is None and recipe.task is not None:
        return [TASKS[recipe.task].reward]
    found: list[Any] = []
    for name in recipe.reward_funcs or []:
        if name in REWARDS:
            found.append(REWARDS[name])
        elif name == "soft_overlong_punishment":
            found.append(get_soft_overlong_punishment(max_completion_length, recipe.soft_overlong_cache))
        elif name.startswith("model:"):
            found.append(name.removeprefix("model:"))
        elif is_import_path(name):
            found.append(load_function(name, field="reward_funcs"))
        else:
            raise ValueError(
                f"reward_funcs has {name!r}; choose from {[*REWARDS, 'soft_overlong_punishment']}, an import path "
                "'package.module:function', or 'model:' followed by the name of a reward model"
            )
    return found


def add_noise(
    recipe: "RecipeArguments",
    functions: list[Any],
    weights: list[float] | None,
    *,
    seed: int,
    accuracy: str | None = None,
) -> tuple[list[Any], list[float] | None]:
    """Return the functions and weights with `reward_flip`: the accuracy reward flipped, the true one with weight 0.

    `accuracy` is the name of the accuracy reward; default the first function.
    """
    if not recipe.reward_flip:
        return functions, weights
    names = [getattr(function, "__name__", function) for function in functions]
    if accuracy not in (None, *names) or not names:
        raise ValueError(
            f"reward_flip={recipe.reward_flip} flips the accuracy reward, but accuracy_reward={accuracy!r} is not one "
            f"of the reward functions {names}"
        )
    index = 0 if accuracy is None else names.index(accuracy)
    chosen = functions[index]
    noisy = flipped(chosen, recipe.reward_flip, seed=seed)
    weights = [*(weights or [1.0] * len(functions)), 0.0]
    return [*functions[:index], noisy, *functions[index + 1 :], measured(chosen)], weights
