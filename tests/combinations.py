"""Every pair of methods that a run can combine, why some pairs are rejected, and a few runs that cover the others.

The methods come from the dicts of the stages, so a new one is included by its line there.
"""

from itertools import combinations, permutations, product
from typing import Any

from canon_trl.advantages import ESTIMATORS
from canon_trl.config.loss_stages import ORDER, kind_of
from canon_trl.config.stages import METHODS
from canon_trl.controllers import CONTROLLERS
from canon_trl.controllers.protocol import steered_knob
from canon_trl.loss_terms import LOSS_TERMS
from canon_trl.method import Method
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.policy_losses.kinds import Whole
from canon_trl.policy_rewards import POLICY_REWARDS
from canon_trl.token_advantages import TOKEN_ADVANTAGES

STAGES = {
    "policy_reward": POLICY_REWARDS,
    "advantage_estimator": ESTIMATORS,
    "token_advantage": TOKEN_ADVANTAGES,
    "policy_loss": POLICY_LOSSES,
    "loss_term": LOSS_TERMS,
    "controller": CONTROLLERS,
}
MOST = {field: 2 if field in METHODS else 1 for field in STAGES}  # methods of a stage in one run
# Options with which a method takes effect on a few groups of four short responses, where its defaults do not.
OPTIONS: dict[str, dict[str, Any]] = {
    "mix": {"canon": 0.5, "opo": 0.5},
    "pass_at_k": {"k": 2},
    "pshw": {"low": 0},
    "dmmpt": {"tau": 0.5, "sigma": 9.0},
    "clip_b": {"mu": 0.5},
    "clip_cov": {"low": 0.0, "high": 9.0, "ratio": 0.5},
    "kl_cov": {"fraction": 0.2},
    "dppo": {"low": 0.01, "high": 0.01},
    "disco": {"beta": 10.0},
    "ter": {"coef": 0.1},
    "tea": {"scale": 0.5},
    "e3_temperature": {"target_entropy": 1.0, "init_steps": 0},
    "adaptive_clip": {"step": 0.05},
}

# The ranges in which policy rewards are, if at all. Rewards computed from probabilities are in none.
IN_RANGES = {"self_consistency": ("[0, 1]", "[0, inf)"), "majority_vote": ("{0, 1}", "[0, 1]", "[0, inf)")}

Chosen = tuple[str, str]  # a stage's field and a method of the stage
Row = tuple[Chosen, ...]  # what one run combines, in the order of the stages
Pair = tuple[Chosen, Chosen]


def ignores_advantages(policy_loss: Method) -> bool:
    return isinstance(policy_loss, Whole) and not {"advantages", "tokens"} & {*policy_loss.reads}


def range_of(field: str, name: str) -> str | None:
    """The rewards for which a method is defined, with its options here."""
    return STAGES[field][name].with_options(OPTIONS.get(name, {}), where="").reward_range


def kind_of_end(text: str) -> str:
    """An answer that some responses of a group share, and that others do not give."""
    return "one" if text[-1:] in "04567" else "other"


def reason_to_reject(first: Chosen, second: Chosen) -> str | None:
    """Words of the error that rejects the two methods together; `None` if they can be combined."""
    if first[0] == second[0]:
        return reason_within_a_stage(*first, second[1])
    for (field, name), (other, method) in ((first, second), (second, first)):
        if field == "policy_loss" and other == "token_advantage" and ignores_advantages(POLICY_LOSSES[name]):
            return f"{other}='{method}' would be ignored: policy_loss='{name}' reads no advantages"
        whole = field == "policy_loss" and not {"response_advantages", "advantages"} & {*POLICY_LOSSES[name].reads}
        if whole and other == "advantage_estimator" and ignores_advantages(POLICY_LOSSES[name]) and method != "canon":
            return f"{other}='{method}' would be ignored: policy_loss='{name}' reads no advantages"
        if field == "loss_term" and "beta" in LOSS_TERMS[name].reads and isinstance(POLICY_LOSSES.get(method), Whole):
            return f"{field}='{name}' changes TRL's KL term, which {other}='{method}' replaces"
        reward_range = range_of(other, method)
        if field == "policy_reward" and reward_range is not None and reward_range not in IN_RANGES.get(name, ()):
            if reward_range.startswith("{") and name not in IN_RANGES:
                return f"policy_reward='{name}' can be any number, but {other}='{method}' is defined for rewards in"
            return f"{other}='{method}' is defined for rewards in .*, but .*'{name}'"
        if field == "controller" and other == "policy_loss" and steered_knob(CONTROLLERS[name]) == "epsilon_high":
            if isinstance(POLICY_LOSSES[method], Whole):
                return f"controller '{name}' steers 'epsilon_high', which policy_loss='{method}' does not read"
            if not (POLICY_LOSSES[method].clips and POLICY_LOSSES[method].clips_high):
                return f"controller '{name}' steers 'epsilon_high', but '{method}' clips no ratios"
    return None


def reason_within_a_stage(field: str, name: str, later: str) -> str | None:
    """Words of the error that rejects two methods of one stage in this order; `None` if they can be combined."""
    if field == "controller" and len({knob := steered_knob(CONTROLLERS[each]) for each in (name, later)}) == 1:
        return f"'{name}' and '{later}' both steer '{knob}'"
    if field == "token_advantage":
        kinds = [kind_of(TOKEN_ADVANTAGES[each]) for each in (name, later)]
        if {*kinds} <= {*ORDER} and kinds != sorted(kinds, key=ORDER.index):
            return rf"lists {name} \(a {kinds[0]}\), {later} \(a {kinds[1]}\); shapes must come first"
    return None


def find_pairs() -> list[Pair]:
    """List all pairs of methods of different stages, and in both orders those of a stage that allows several."""
    chosen = {field: [(field, name) for name in methods] for field, methods in STAGES.items()}
    pairs = [pair for one, other in combinations(STAGES, 2) for pair in product(chosen[one], chosen[other])]
    return pairs + [pair for field in METHODS for pair in permutations(chosen[field], 2)]


def pairs_of(row: Row) -> list[Pair]:
    return list(combinations(row, 2))


def covering(pairs: list[Pair]) -> list[Row]:
    """Return a few runs that combine every one of the pairs, and no two methods that are rejected together."""
    left = dict.fromkeys(pairs)
    rows: list[Row] = []
    while left:
        row: Row = next(iter(left))
        while True:
            wider = max(extensions(row), key=lambda each: sum(pair in left for pair in pairs_of(each)))
            if not any(pair in left for pair in {*pairs_of(wider)} - {*pairs_of(row)}):
                break
            row = wider
        rows.append(row)
        left = {pair: None for pair in left if pair not in pairs_of(row)}
    return rows


def extensions(row: Row) -> list[Row]:
    """Return the row itself, and with each method that can be added to it."""
    fields = [field for field, _ in row]
    added = [
        tuple(sorted((*row, (field, name)), key=lambda chosen: [*STAGES].index(chosen[0])))
        for field, methods in STAGES.items()
        if fields.count(field) < MOST[field]
        for name in methods
        if (field, name) not in row
    ]
    return [row, *(wider for wider in added if not any(pair in REJECTED for pair in pairs_of(wider)))]


PAIRS = find_pairs()
REJECTED = {pair: words for pair in PAIRS if (words := reason_to_reject(*pair))}
# Pairs that are rejected at the first rollout, since their rewards decide; the config rejects the others.
AT_FIRST_ROLLOUT = [pair for pair, words in REJECTED.items() if words.endswith(f", but .*'{pair[0][1]}'")]
ROWS = covering([pair for pair in PAIRS if pair not in REJECTED])


def options_of(row: Row) -> dict[str, Any]:
    """The options of a config that chooses the methods of a row."""
    names = [name for _, name in row]
    chosen: dict[str, dict[str, Any]] = {}
    for field, name in row:
        chosen.setdefault(field, {})[name] = OPTIONS.get(name, {})
    options: dict[str, Any] = {"num_iterations": 2}
    rewards = chosen.get("policy_reward", {})
    chosen |= {"policy_reward": {name: {"weight": 1 / len(rewards)} for name in rewards}} if rewards else {}
    if rewards and any(range_of(*each) for each in row):
        options["reward_weights"] = [0.0]  # the sum with a reward of 0 or 1 is out of range
    if any("answer_ids" in POLICY_REWARDS[name].reads for name in rewards):
        options["answer_extractor"] = "combinations:kind_of_end"
    if chosen.get("advantage_estimator", {"canon": {}}).keys() == {"canon"} and "disco" not in names:
        options["canon_mu"] = 0.7
    if any("ref_log_probs" in STAGES[field][name].reads for field, name in row):
        options |= {"beta": 0.05, "use_bias_correction_kl": False}
    return options | chosen


def title(row: Row) -> str:
    return "+".join(name for _, name in row)
