"""A*-PO's trainer: stage 2, regression onto the optimal advantage."""

from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from canon_trl.config.astar_po import AStarPOConfig
from canon_trl.hook.data_checks import named_datasets
from canon_trl.hook.trainer import PluggableGRPOTrainer
from canon_trl.policy_losses.astar_po import ASTAR_PO, PAPER
from canon_trl.rollout import Rollout
from canon_trl.sampling.optimal_values import VALUE, with_optimal_values
from canon_trl.sampling.prompt_checks import check_prompts


class AStarPOTrainer(PluggableGRPOTrainer):
    """
    Trainer for A*-PO: one response per prompt, regressed onto the optimal advantage r - V*.

    V* is the value of a prompt under the best policy near the reference model, estimated in advance from the reference
    model's rewards, which `canon-trl values` samples. Generation, rewards, the reference model (with PEFT
    the policy without adapters), distribution and logging are those of [`~trl.GRPOTrainer`].

    Example:

    ```python
    from canon_trl import AStarPOConfig, AStarPOTrainer
    from datasets import load_from_disk
    from trl.rewards import accuracy_reward

    trainer = AStarPOTrainer(
        model="Qwen/Qwen2.5-1.5B",
        reward_funcs=accuracy_reward,
        args=AStarPOConfig(beta1=0.5, beta2=1e-3),
        train_dataset=load_from_disk("outputs/values"),
    )
    trainer.train()
    ```

    Args:
        model, reward_funcs, args, **trl_kwargs: as for [`~trl.GRPOTrainer`], with an [`AStarPOConfig`] as `args`.
        train_dataset, eval_dataset: with the reference model's rewards, see `canon_trl.sampling.optimal_values`.

    Raises:
        TypeError: `args` is not an `AStarPOConfig`, or a dataset is a stream.
        ValueError: before any model is loaded, if a prompt has no optimal value or options conflict.
    """

    _tag_names = ["trl", "canon_trl", "astar_po"]
    _name = "A*-PO"
    _paper = PAPER.for_trl

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        reward_funcs: Any,
        args: AStarPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **trl_kwargs: Any,
    ) -> None:
        if not isinstance(args, AStarPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; it must be an AStarPOConfig")
        given = {"train_dataset": train_dataset, **dict(named_datasets(train_dataset, eval_dataset))}
        for name, dataset in given.items():
            if not isinstance(dataset, Dataset):
                raise TypeError(
                    f"{name} is a {type(dataset).__name__}; A*-PO needs a Dataset with a V* for every prompt"
                )
            if "prompt" in dataset.column_names:
                check_prompts(dataset, name)  # before rows are filtered out, so that row numbers match
        train_dataset = with_values(train_dataset, args, "train_dataset", filtered=args.filter_all_incorrect)
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: with_values(part, args, f"eval_dataset {name!r}") for name, part in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = with_values(eval_dataset, args, "eval_dataset")
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            advantage_estimator=optimal_advantage,
            metrics={VALUE: value_of_prompt},
            policy_loss=ASTAR_PO.with_options({"beta": args.beta2}, where="beta2: "),
            rollout_sampler=args.rollout_sampler,
            reward_time_limit=args.reward_time_limit,
            resume_with_changes=args.resume_with_changes,
            **trl_kwargs,
        )

    def method_options(self) -> dict[str, Any]:
        return super().method_options() | {"beta": None}  # listed as beta2

    def rollout_statistics(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor | float]:
        return {
            "astar_po/v_star": rollout.metrics[VALUE].mean(),
            "astar_po/advantage": advantages.mean(),
            "astar_po/advantage_rms": advantages.pow(2).mean().sqrt(),
        }


def with_values(dataset: Dataset, args: AStarPOConfig, name: str, *, filtered: bool = False) -> Dataset:
    """Return the dataset with its optimal values."""
    return with_optimal_values(dataset, beta1=args.beta1, filter_all_incorrect=filtered, name=name)


def value_of_prompt(v_star: list[float]) -> list[float]:
    """Return the optimal value of the prompt, as a response metric, equal for all its responses."""
    return v_star


def optimal_advantage(rollout: Rollout) -> Tensor:
    """r - V*, `(P, 1)` in training."""
    return rollout.rewards - rollout.metrics[VALUE]
