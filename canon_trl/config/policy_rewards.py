"""What the field `policy_reward` holds: policy rewards, each with a weight."""

from collections.abc import Mapping
from typing import Annotated, Any

from canon_trl.config.specs import find_all
from canon_trl.options import check_values
from canon_trl.policy_rewards import STAGE, PolicyReward

Weight = Annotated[float, "[-1e6, 1e6]"]  # beyond, float32 soon overflows


def find_policy_rewards(spec: Any) -> tuple[PolicyReward, ...]:
    """The policy rewards that a value of the field stands for, with their weights.

    ```yaml
    policy_reward: rent
    policy_reward: {rent: {weight: 0.5, empty: -5.0}, "my_rewards:brevity": {weight: 0.1}}
    ```

    Args:
        spec: as for [`~canon_trl.config.specs.find_all`]; the option `weight`, 1 by default, is the reward's own in
            the sum of all rewards.

    Raises:
        ValueError: there is no such reward, one is listed twice, or an option or a weight is not what it can be.
    """
    if spec is None:
        return ()
    if isinstance(spec, Mapping):
        spec = [{name: options} for name, options in spec.items()]
    weighed = [weight_of(each) for each in (spec if isinstance(spec, list | tuple) else [spec])]
    methods = find_all(STAGE, [each for each, _ in weighed])
    for method, (_, weight) in zip(methods, weighed, strict=True):
        if "weight" in method.all_options:
            raise ValueError(
                f"policy_reward: {method.name!r} takes an option weight, which would be taken for its weight among "
                "the rewards; give the option another name"
            )
        check_values({"weight": weight}, {"weight": Weight}, where=f"policy_reward {method.name!r}: ")
    return tuple(PolicyReward(method, weight) for method, (_, weight) in zip(methods, weighed, strict=True))


def weight_of(spec: Any) -> tuple[Any, Any]:
    """One policy reward without its weight, and the weight."""
    if not isinstance(spec, Mapping) or len(spec) != 1:
        return spec, 1.0
    ((name, options),) = spec.items()
    if not isinstance(options, Mapping):
        return spec, 1.0
    return {name: {option: value for option, value in options.items() if option != "weight"}}, options.get(
        "weight", 1.0
    )
