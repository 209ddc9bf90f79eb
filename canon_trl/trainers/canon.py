"""CANON's trainer."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from canon_trl.advantages import ESTIMATORS, STAGE, canon_estimator, split_by_metric
from canon_trl.advantages.canon import PAPER, canon_statistics
from canon_trl.config.canon import ACCURACY_SCHEDULES, COSINE_SCHEDULES, CANONConfig
from canon_trl.config.policy_rewards import find_policy_rewards
from canon_trl.hook.trainer import PluggableGRPOTrainer
from canon_trl.method import Method, find
from canon_trl.metrics import ResponseMetric, metric_name
from canon_trl.rollout import Rollout


class CANONTrainer(PluggableGRPOTrainer):
    """
    Trainer for CANON, conditional advantage estimation, and for any other advantage estimator, on top of
    [`~trl.GRPOTrainer`].

    Example:

    ```python
    from canon_trl import CANONConfig, CANONTrainer
    from datasets import load_dataset
    from trl.rewards import accuracy_reward

    trainer = CANONTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=accuracy_reward,
        args=CANONConfig(canon_metric="entropy", canon_mu=1.0),
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
    )
    trainer.train()
    ```

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs: as for [`~trl.GRPOTrainer`], with a
            [`CANONConfig`] as `args`.
        advantage_estimator: a function that replaces the one named by `args.advantage_estimator`. Its positional
            parameters name fields of a [`~canon_trl.rollout.Rollout`], or `rollout` for all of it; it returns `(P, G)`
            or `(P, G, T)`. Bind options to it with `functools.partial`.
        policy_reward, token_advantage, policy_loss, loss_term, controller: replace the fields of `args` with these
            names: a function, a mapping from it to its options, or several of these (except for the policy loss).
            With a policy reward, `reward_funcs` may be omitted.
        answer_extractor: replaces the field of `args`: a function that returns the answer in a text, or `None`.
        canon_metric: a metric that replaces the one named by `args.canon_metric`, see `canon_trl.metrics`.

    Raises:
        TypeError: `args` is not a `CANONConfig`.
        ValueError: before any model is loaded, if options conflict.
    """

    _tag_names = ["trl", "canon_trl", "canon"]
    _name = "CANON"
    _paper = PAPER.for_trl
    _metric_name: str | None = None  # with CANON's estimator
    _estimator_options: Mapping[str, Any] = {}  # with any other

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        reward_funcs: Any = None,
        args: CANONConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        advantage_estimator: Callable[..., Tensor] | None = None,
        canon_metric: ResponseMetric | None = None,
        policy_reward: Any = None,
        answer_extractor: Callable[[str], str | None] | None = None,
        token_advantage: Any = None,
        policy_loss: Any = None,
        loss_term: Any = None,
        controller: Any = None,
        **trl_kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CANONConfig(f"{name.rstrip('/').split('/')[-1]}-CANON")
        if not isinstance(args, CANONConfig):
            raise TypeError(f"args is a {type(args).__name__}; it must be a CANONConfig, which has the same fields")
        if advantage_estimator is None and args.advantage_estimator == "canon":
            method = self._canon(args, canon_metric)
        else:
            method = self._other(args, advantage_estimator, canon_metric)
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            advantage_estimator=method,
            policy_rewards=find_policy_rewards(chosen("policy_reward", policy_reward, args)),
            answer_extractor=chosen("answer_extractor", answer_extractor, args),
            accuracy_reward=args.accuracy_reward,
            needs_accuracy=self._metric_name is not None and args.canon_mu_schedule in ACCURACY_SCHEDULES,
            entropy_source=args.entropy_source,
            token_advantage=chosen("token_advantage", token_advantage, args),
            policy_loss=args.make_policy_loss() if policy_loss is None else chosen("policy_loss", policy_loss, args),
            loss_term=chosen("loss_term", loss_term, args),
            controller=chosen("controller", controller, args),
            dynamic_sampling=args.make_dynamic_sampling(),
            rollout_sampler=args.rollout_sampler,
            reward_time_limit=args.reward_time_limit,
            resume_with_changes=args.resume_with_changes,
            **trl_kwargs,
        )

    def _canon(self, args: CANONConfig, metric: ResponseMetric | None) -> Method:
        if metric is not None and "canon_metric" in args.changed_canon_fields():
            raise ValueError(
                f"canon_metric is given to the trainer and as args.canon_metric={args.canon_metric!r}; set only one"
            )
        method = args.make_estimator(metric)
        self._metric_name = metric_name(method.options["metric"])

        @wraps(canon_estimator)
        def scheduled(rollout: Rollout, **options: Any) -> Tensor:
            return canon_estimator(rollout, mu=self._mu(rollout), **options)

        return replace(method, function=scheduled)

    def _other(self, args: CANONConfig, given: Callable[..., Tensor] | None, metric: ResponseMetric | None) -> Method:
        if metric is not None:
            raise ValueError("canon_metric is used by advantage_estimator='canon' only")
        if given is not None and (args.advantage_estimator != "canon" or args.changed_canon_fields()):
            raise ValueError(
                f"advantage_estimator is given to the trainer: args.advantage_estimator={args.advantage_estimator!r} "
                f"and {args.changed_canon_fields()} would be ignored; leave them at their defaults"
            )
        method = args.make_estimator() if given is None else find(STAGE, given)
        self._name, self._paper = method.name, {} if method.paper is None else method.paper.for_trl
        self._tag_names = ["trl", "canon_trl", *([method.name] if given is None and method.name in ESTIMATORS else [])]
        self._estimator_options = method.all_options
        return method

    def _mu(self, rollout: Rollout) -> float | Tensor:
        return self.args.mu_schedule()(rollout.step, rollout.total_steps, rollout.accuracy)

    def method_options(self) -> dict[str, Any]:
        if self._metric_name is None:
            return {"advantage_estimator": self._name, **self._estimator_options}
        own = [option.name for option in fields(self.args) if option.name.startswith("canon_")]
        if self.args.canon_mu_schedule not in COSINE_SCHEDULES:
            own = [name for name in own if not name.startswith("canon_cosine_")]
        if self.args.canon_mu_schedule != "constant":
            own.remove("canon_mu")
        resolved = self._response_metrics[self._metric_name]
        chosen = {"canon_metric": self._metric_name, "canon_alpha_group": self.args.alpha_group(resolved)}
        return {"advantage_estimator": "canon"} | {name: getattr(self.args, name) for name in own} | chosen

    def rollout_statistics(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor | float]:
        statistics = super().rollout_statistics(rollout, advantages)
        if self._metric_name is None:
            return statistics
        halves = canon_statistics(rollout.rewards, rollout.metrics[self._metric_name], valid=rollout.valid)
        return statistics | {"canon/mu": self._mu(rollout)} | {f"canon/{name}": v for name, v in halves.items()}

    def completion_columns(self, rollout: Rollout) -> dict[str, Any]:
        columns = super().completion_columns(rollout)
        if self._metric_name is None:
            return columns
        higher = split_by_metric(rollout.metrics[self._metric_name], rollout.valid)
        return columns | {"higher_half": higher}


def chosen(field: str, given: Any, args: CANONConfig) -> Any:
    """Return the methods of a stage, from the trainer's argument or the field of `args`."""
    named = getattr(args, field)
    if given is not None and named is not None:
        raise ValueError(f"{field} is given to the trainer and as args.{field}={named!r}; set only one")
    return named if given is None else given
