"""Values of the field `policy_reward`: policy rewards with weights."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from canon_trl.config.loss_stages import LossStages, reward_ranges
from canon_trl.config.specs import find_all
from canon_trl.method import Method
from canon_trl.options import check_values
from canon_trl.policy_rewards import POLICY_REWARDS, STAGE, PolicyReward

Weight = Annotated[float, "[-1e6, 1e6]"]  # float32 soon overflows above 1e6


def find_policy_rewards(spec: Any) -> tuple[PolicyReward, ...]:
    """Find the policy rewards that a value of the field names, with their weights.

    ```yaml
    policy_reward: rent
    policy_reward: {rent: {weight: 0.5, empty: -5.0}, "my_rewards:brevity": {weight: 0.1}}
    ```

    Args:
        spec: as for [`~canon_trl.config.specs.find_all`]. The option `weight`, 1 by default, is the weight in the sum
            of all rewards.

    Raises:
        ValueError: a reward is unknown or listed twice, or it does not take an option or a weight.
    """
    if spec is None:
        return ()
    if isinstance(spec, Mapping):
        spec = [{name: options} for name, options in spec.items()]
    split = [split_weight(each) for each in (spec if isinstance(spec, list | tuple) else [spec])]
    methods = find_all(STAGE, [each for each, _ in split])
    rewards = tuple(PolicyReward(method, weight) for method, (_, weight) in zip(methods, split, strict=True))
    for method, weight in ((reward.method, reward.weight) for reward in rewards):
        if "weight" in method.all_options:
            raise ValueError(
                f"policy_reward: {method.name!r} has an option named weight, which means its weight in the reward; "
                "rename the option"
            )
        check_values({"weight": weight}, {"weight": Weight}, where=f"policy_reward {method.name!r}: ")
    return rewards


def split_weight(spec: Any) -> tuple[Any, Any]:
    """Split a policy reward into itself without its weight, and the weight."""
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, options),) = spec.items()
        if isinstance(options, Mapping):
            options = dict(options)
            weight = options.pop("weight", 1.0)
            return {name: options}, weight
    return spec, 1.0


def check_two_values(rewards: Sequence[PolicyReward], estimator: Method, stages: LossStages) -> None:
    """Reject a built-in reward computed from probabilities with a method that is defined for two rewards alone.

    The first rollout shows whether other policy rewards are in the range of a method.

    Raises:
        ValueError: names the policy reward and the method.
    """
    built_in = [reward for reward in rewards if reward.weight and reward.method.name in POLICY_REWARDS]
    names = [reward.name for reward in built_in if {"entropies", "log_probs"} & {*reward.method.reads}]
    for method, reward_range in reward_ranges(estimator, stages).items():
        if names and reward_range.startswith("{"):
            raise ValueError(
                f"policy_reward={names[0]!r} can be any number, but {method} is defined for rewards in {reward_range} "
                "only; give the policy reward weight 0, or choose another method"
            )
