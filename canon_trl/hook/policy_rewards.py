"""Policy rewards in TRL: reward functions that also read the policy's own numbers."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from trl import GRPOConfig

from canon_trl.hook.data_checks import named_datasets
from canon_trl.hook.rollout_parts import Making
from canon_trl.hook.scoring import Scoring
from canon_trl.method import Method, check_readable
from canon_trl.metrics import METRICS, TOKEN_INPUTS, ResponseMetric
from canon_trl.policy_rewards import STAGE, PolicyReward

# What TRL hands reward functions besides the columns of the dataset.
FROM_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# The metric that tells of a collapse, by what a policy reward reads. Every rollout then carries it.
TELLS_COLLAPSE = {"entropies": "entropy", "log_probs": "surprisal"}


class PolicyRewards(Scoring):
    """Adds policy rewards to TRL's reward functions, so that TRL calls, gathers, logs and tabulates them alike."""

    reward_weights: Tensor
    _policy_rewards: Sequence[PolicyReward] = ()

    def _add_policy_rewards(self, rewards: Sequence[PolicyReward]) -> None:
        if self.reward_funcs[:1] == [unscored]:
            for each in (self.reward_funcs, self.reward_func_names, self.reward_processing_classes):
                del each[0]
            self.reward_weights = self.reward_weights[1:]
        self._policy_rewards = rewards
        self.reward_funcs += [partial(self._policy_reward, reward.method) for reward in rewards]
        self.reward_func_names += [reward.name for reward in rewards]
        self.reward_processing_classes += [None] * len(rewards)
        self._weigh_policy_rewards()

    def _weigh_policy_rewards(self) -> None:
        """Let their weights follow those of the given functions, which a callback may have set anew."""
        if self._policy_rewards:
            given = len(self.reward_funcs) - len(self._policy_rewards)
            own = torch.tensor([reward.weight for reward in self._policy_rewards])
            self.reward_weights = torch.cat([self.reward_weights[:given], own])

    def _policy_reward(self, method: Method, **inputs: Any) -> Tensor:
        """The rewards of this rank's responses; called by TRL as any reward function is."""
        making = cast(Making, self._phase)
        mask = making.model_mask(self._width(making), self.accelerator.device)
        readable = inputs | self._token_values(making) | {"mask": mask}
        check_readable(method, readable, field=STAGE.field)
        return method(SimpleNamespace(**readable))


def unscored(completions: list, **kwargs: Any) -> list[None]:
    """Stands in where only policy rewards are wanted: TRL builds no trainer without a reward function."""
    return [None] * len(completions)


def token_inputs_of(rewards: Sequence[PolicyReward]) -> list[str]:
    """Those of `entropies` and `log_probs` that policy rewards read."""
    read = {name for reward in rewards for name in reward.method.reads}
    return [name for name in TELLS_COLLAPSE if name in read]


def telling_metrics(rewards: Sequence[PolicyReward]) -> dict[str, ResponseMetric]:
    """The response metrics that tell of a collapse under these rewards, by name."""
    return {TELLS_COLLAPSE[name]: METRICS[TELLS_COLLAPSE[name]] for name in token_inputs_of(rewards)}


def check_policy_rewards(
    rewards: Sequence[PolicyReward], train_dataset: Any, eval_dataset: Any, trl_kwargs: Mapping[str, Any]
) -> None:
    """Refuse a policy reward that reads what neither the trainer nor a column supplies.

    The columns of a stream, and those that a rollout_func or an environment brings, are known once they are there.
    """
    if trl_kwargs.get("rollout_func") or trl_kwargs.get("environment_factory"):
        return
    for _, dataset in named_datasets(train_dataset, eval_dataset):
        if dataset.column_names is not None:
            for reward in rewards:
                available = {*TOKEN_INPUTS, *FROM_TRL, *dataset.column_names}
                check_readable(reward.method, available, field=STAGE.field)


def check_recorded(rewards: Sequence[PolicyReward], *, records: bool) -> None:
    """Refuse dynamic sampling by rewards that would be known too late.

    Raises:
        ValueError: they read what is not recorded while responses are generated.
    """
    if not records and (read := token_inputs_of(rewards)):
        raise ValueError(
            f"dynamic_sampling=True with a policy_reward that reads {read}: groups are chosen by their rewards before "
            "any response is scored, so these must be recorded while generating, which cannot be done with vLLM, "
            "tools, environments, a rollout_func or entropy_source='forward'"
        )


def check_alone(args: GRPOConfig, *, needs_accuracy: bool) -> None:
    """Refuse what policy rewards cannot do without a reward function next to them."""
    if args.reward_weights:
        raise ValueError(
            f"reward_weights={args.reward_weights!r} would be ignored: there are no reward functions, and a policy "
            "reward has its weight among its options"
        )
    if needs_accuracy:
        raise ValueError(
            "the schedule of mu reads the accuracy, which no reward function measures; give one, with weight 0 if it "
            "is to change nothing else"
        )
