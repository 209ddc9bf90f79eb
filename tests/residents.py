"""The first method of each stage, as in a config, with options that take effect on the embedded task."""

from typing import Any

FIRST: dict[str, dict[str, Any]] = {
    "policy_reward": {"rent": {"weight": 0.5}},
    "advantage_estimator": {"maxrl": {}},
    "token_advantage": {"entropy_shaped": {"alpha": 0.4}},
    "policy_loss": {"disco": {"tau": 2.0, "beta": 10.0}},
    "loss_term": {"ter": {"coef": 0.2, "target": 0.1}},
    "controller": {"e3_temperature": {"target_entropy": 1.0, "init_steps": 0}},
}
