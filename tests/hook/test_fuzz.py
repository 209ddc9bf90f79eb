"""Any options of this package train or are rejected before a model is loaded; hypothesis looks for counterexamples."""

import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import logged, make_trainer, parameters, prompts
from transformers import PreTrainedModel
from trl import GRPOConfig

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig
from canon_trl.advantages import ESTIMATORS
from canon_trl.metrics import METRICS, RANDOM
from canon_trl.options import bounded, lies_in
from canon_trl.schedules import SCHEDULES

SMALL = {"max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_completion_length": 4}
SMALL |= {"logging_steps": 1, "seed": 1}

OF_TRL = {option.name for option in fields(GRPOConfig)}

# Values that some numbers, names or flags must not have.
NUMBERS = [0, 1, 2, 3, 7, -1, -2, 0.5, 1.0, 2.5, -0.5, 1e-3, 1e-300, 1e300, math.nan, math.inf, -math.inf]
WILD = st.sampled_from([*NUMBERS, "1", "0.5", "", "none", "true", None, True, False, [], {}, [1.0], {"eps": 0.1}])

AGGREGATIONS = ["sum_then_normalize", "normalize_then_sum"]
SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1)
POSITIVE = st.sampled_from([0.1, 0.5, 1.0, 1.5, 10.0]) | st.floats(0.1, 100)
WEIGHTS = st.sampled_from([0.0, 0.01, 0.1, 1.0]) | st.floats(0, 10)


def one(name: str, *values: Any) -> st.SearchStrategy:
    """A field with one of these values, or with a value from this strategy."""
    (found,) = values if isinstance(values[0], st.SearchStrategy) else (st.sampled_from(values),)
    return st.fixed_dictionaries({name: found})


def some(*required: str, **strategies: Any) -> st.SearchStrategy:
    """Several fields; those that are not `required` may be missing."""
    found = {name: s if isinstance(s, st.SearchStrategy) else st.sampled_from(s) for name, s in strategies.items()}
    optional = {name: found.pop(name) for name in strategies if name not in required}
    return st.fixed_dictionaries(found, optional=optional)


def estimator_options(name: str) -> st.SearchStrategy:
    known = {"grpo": {"eps": POSITIVE}, "w_reinforce": {"positive_weight": WEIGHTS}}
    known["a_grae"] = {"eps": POSITIVE, "attenuation": POSITIVE, "scale": st.booleans()}
    known["a_grae"]["form"] = st.sampled_from(["paper", "released"])
    known["grpo_s"] = {"standardise": st.sampled_from(["with_zeros", "together", "apart"]), "entropy_weight": WEIGHTS}
    known["gtpo"] = known["grpo_s"] | {"scope": st.sampled_from(["batch", "group"])}
    known["pass_at_k"] = {"k": st.integers(0, 4)}
    known["pshw"] = {"low": st.sampled_from([-1, 0, 0.0, 1]), "alpha": WEIGHTS}
    options = st.fixed_dictionaries({}, optional=known.get(name, {}))
    return st.fixed_dictionaries(
        {"advantage_estimator": st.just(name)}, optional={"advantage_estimator_kwargs": options}
    )


INHERITED = [
    some(
        num_generations=[2, 3, 4, 5],
        per_device_train_batch_size=[2, 3, 4, 8],
        gradient_accumulation_steps=[1, 2, 3],
        steps_per_generation=[None, 1, 2, 3],
        num_iterations=[1, 2, 3],
    ),
    some(num_generations=[2, 4], generation_batch_size=[4, 8, 16], gradient_accumulation_steps=[1, 2]),
    some(
        num_generations_eval=[None, 1, 2, 4],
        per_device_eval_batch_size=[2, 4],
        eval_strategy=["no", "steps"],
        eval_steps=[None, 1],
    ),
    some(
        temperature=POSITIVE,
        top_p=[0.1, 0.9, 1.0],
        top_k=[0, 1, 5],
        min_p=[None, 0.0, 0.1, 1.0],
        repetition_penalty=[0.5, 1.0, 2.0],
    ),
    some(max_completion_length=[1, 2, 6], mask_truncated_completions=[True, False]),
    some(
        loss_type=["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
        importance_sampling_level=["token", "sequence"],
    ),
    some(scale_rewards=["none", "group", "batch", False, True], multi_objective_aggregation=AGGREGATIONS),
    some(beta=WEIGHTS, sync_ref_model=[True, False], ref_model_sync_steps=[1, 2], ref_model_mixup_alpha=SHARES),
    some(epsilon=WEIGHTS, epsilon_high=st.none() | WEIGHTS, delta=st.none() | POSITIVE),
    some(off_policy_mask_threshold=st.none() | WEIGHTS, top_entropy_quantile=SHARES),
    some(entropy_coef=WEIGHTS, use_adaptive_entropy=[True, False], entropy_target=WEIGHTS),
    some(learning_rate=[0.0, 1e-6, 1e-3, 0.01], warmup_steps=[0, 1, 0.5, 9], weight_decay=[0.0, 0.1]),
    some(max_steps=[1, 2, -1], num_train_epochs=[0.1, 0.25]),
    some(seed=[0, 1, 2**31 - 1], disable_dropout=[True, False], shuffle_dataset=[True, False, None]),
    some(max_grad_norm=WEIGHTS, adam_beta1=[0.0, 0.9], adam_epsilon=[1e-8, 1e-3]),
    one("pad_to_multiple_of", None, 8, "auto"),
]

CANON = [
    some(
        canon_metric=[*METRICS, RANDOM, "lenght"],
        canon_mu=SHARES,
        canon_alpha=POSITIVE,
        canon_alpha_group=[None, "higher", "lower", "all"],
    ),
    some(
        "canon_mu_schedule",
        canon_mu_schedule=[*SCHEDULES, "linear"],
        canon_cosine_warmup_ratio=[0.0, 0.2, 0.5],
        canon_cosine_cycles=[1, 2],
        canon_cosine_low=[None, 0.0, 0.5],
        canon_cosine_high=[None, 0.5, 1.0],
    ),
    st.sampled_from([*ESTIMATORS, "gropo"]).flatmap(estimator_options),
    one("accuracy_reward", None, "right", "long", "", "wrong"),
    one("entropy_source", "auto", "generation", "forward", "logits"),
    some("policy_loss", policy_loss=["clip_cov"], policy_loss_kwargs=some(ratio=SHARES, scope=["batch", "rank"])),
    some("policy_loss", policy_loss=["kl_cov"], policy_loss_kwargs=some(fraction=SHARES, coef=WEIGHTS)),
    one("token_advantage", "entropy_shaped", {"entropy_shaped": {"alpha": 0.1}}, ["entropy_shaped"], "shaped"),
    one("loss_term", "ter", {"ter": {"coef": 0.1}}, {"ter": {"coef": -1}}, "tre"),
    some(
        "dynamic_sampling",
        dynamic_sampling=[True],
        dynamic_sampling_kwargs=some(
            max_rounds=[1, 2], lower=SHARES, upper=SHARES, exhausted=["shrink", "keep", "error", "stop"]
        ),
    ),
    one("reward_weights", None, [1.0, 0.5], [1.0, 0.0]),
]

ASTAR_PO = [
    some(beta1=WEIGHTS, beta2=WEIGHTS),
    one("filter_all_incorrect", True, False),
    one("num_generations", 1, 2),
    one("reward_weights", None, [1.0, 0.5]),
]

# Numbers that may be undefined: a ratio to Dr.GRPO's advantages, which are 0 without spread; the entropies of right or
# wrong responses, and TRL's shares of the tokens that are trained on, since there may be none.
UNDEFINED = (
    "advantage/relative_to_dr_grpo",
    "entropy/right",
    "entropy/wrong",
    "clip_ratio/low_min",
    "clip_ratio/high_max",
    "token_advantage/entropy_shaped/share_changed",
)

INNER = ("advantage_estimator_kwargs", "policy_loss_kwargs", "dynamic_sampling_kwargs")


@st.composite
def configurations(draw: st.DrawFn, parts: list[st.SearchStrategy]) -> dict[str, Any]:
    """A few parts that may or may not go together, and sometimes an invalid value of one of our options."""
    found: dict[str, Any] = {}
    for part in draw(st.lists(st.sampled_from(parts), min_size=1, max_size=5, unique_by=id)):
        found |= draw(part)
    names = sorted((found.keys() | draw(st.one_of(parts))) - OF_TRL)
    if names and draw(st.booleans()):
        name = draw(st.sampled_from(names))
        if name in INNER and found.get(name):
            inner = draw(st.sampled_from(sorted(found[name])))
            found[name] = found[name] | {inner: draw(WILD)}
        else:
            found[name] = draw(WILD)
    return found


@contextmanager
def counted_loads() -> Iterator[list[str]]:
    """The names of the models that are loaded within the context."""
    loads, load = [], PreTrainedModel.from_pretrained.__func__

    def observed(cls: type, name: str, *args: Any, **kwargs: Any) -> Any:
        loads.append(name)
        return load(cls, name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(observed))
        yield loads


def right(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(index % 2) for index, _ in enumerate(completions)]


def right_or_minus_1(completions: list[str], **kwargs: Any) -> list[float]:
    return [2 * reward - 1 for reward in right(completions)]


def long(completions: list[str], **kwargs: Any) -> list[float]:
    return [len(completion) / 16 for completion in completions]


def shown(value: Any) -> set[str]:
    """The texts by which a message may show a value; for options, any one of them."""
    inner = [text for option, part in value.items() for text in (option, *shown(part))] if type(value) is dict else []
    inner += [repr(part) for part in value] if type(value) is list else []
    scaling = (
        {True: "'group'", False: "'none'"}.get(value) if isinstance(value, int | float) else None
    )  # what TRL reads
    return {repr(value), *inner, *([scaling] if scaling else [])}


def names_a_value(message: str, options: dict[str, Any]) -> bool:
    return any(name in message and any(text in message for text in shown(options[name])) for name in options)


def ours(error: Exception) -> bool:
    """Whether this package raised the error; those that TRL raises are not checked."""
    frames = traceback.extract_tb(error.__traceback__)
    return "canon_trl" in Path(frames[-1].filename).parts


def check(folder: str, options: dict[str, Any], **classes: Any) -> str:
    """Check that options are rejected with a reason, train, or diverge with an error; return which."""
    with counted_loads() as loads:
        try:
            trainer = make_trainer(folder, **classes, **(SMALL | options))
        except (ValueError, TypeError, ImportError) as error:
            if not ours(error):
                return "rejected by TRL"
            assert not loads, f"rejected after a model was loaded: {error}"
            assert names_a_value(str(error), options), f"the message names no value: {error}"
            return "rejected"
    assert loads
    try:
        trainer.train()
    except FloatingPointError:
        assert trainer.args.learning_rate > 1, "only such a learning rate may make training diverge"
        return "stopped"
    assert trainer.state.global_step == trainer.state.max_steps > 0
    history = logged(trainer)
    assert len(history) == trainer.state.max_steps
    for entry in history:
        wrong = {name: value for name, value in entry.items() if not is_finite(value) and name not in UNDEFINED}
        assert not wrong, f"logged {wrong}"
    unsound = [name for name, value in parameters(trainer).items() if not value.isfinite().all()]
    assert not unsound, f"{unsound[0]} is not finite"
    return "trained"


def is_finite(logged_value: float | None) -> bool:
    return logged_value is not None and math.isfinite(logged_value)  # NaN is logged as None


def check_canon(folder: str, options: dict[str, Any]) -> str:
    name = options.get("advantage_estimator", "canon")
    estimator = ESTIMATORS.get(name) if isinstance(name, str) else None
    ranged = estimator is not None and estimator.reward_range is not None
    own = options.get("advantage_estimator_kwargs", {})
    signed = name == "pshw" and not (isinstance(own, dict) and own.get("low", -1) == 0)
    data = {
        "reward_funcs": [right_or_minus_1 if signed else right] if ranged else [right, long],
        "train_dataset": prompts(16),
    }
    return check(folder, options, trainer_options=data | {"eval_dataset": prompts(2)})


def check_astar_po(folder: str, options: dict[str, Any]) -> str:
    data = prompts(16).add_column("rewards", [[1.0, 0.0, 0.0, 1.0]] * 16)
    data = {"reward_funcs": [right, long], "train_dataset": data, "eval_dataset": data.select(range(2))}
    classes = {"trainer_class": AStarPOTrainer, "config_class": AStarPOConfig}
    return check(folder, {"num_generations": 1} | options, trainer_options=data, **classes)


@pytest.mark.slow
@settings(max_examples=60)
@given(configurations(INHERITED + CANON))
def test_canon_trains_or_is_rejected_with_a_reason(scratch, options):
    check_canon(scratch, options)


@pytest.mark.slow
@settings(max_examples=25)
@given(configurations(INHERITED + ASTAR_PO))
def test_astar_po_trains_or_is_rejected_with_a_reason(scratch, options):
    check_astar_po(scratch, options)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return str(tmp_path_factory.mktemp("fuzz"))


def beyond(interval: str) -> list[float]:
    """Numbers just outside an interval, and NaN."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    below = low if interval[0] == "(" else math.nextafter(low, -math.inf)
    above = high if interval[-1] == ")" else math.nextafter(high, math.inf)
    return [number for number in (below, above) if not lies_in(number, interval)] + [math.nan]


BOUNDS = {
    (config, name): bounds
    for config in (CANONConfig, AStarPOConfig)
    for name, annotation in get_type_hints(config, include_extras=True).items()
    if (bounds := bounded(annotation)[1]) != "[-inf, inf]"
}


@pytest.mark.parametrize(("config", "name"), BOUNDS)
def test_the_error_names_a_number_out_of_bounds(config, name):
    bounds = BOUNDS[config, name]
    whole = "cycles" in name
    for value in [0] if whole else beyond(bounds):
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} must lie in {bounds}")):
            config("out", per_device_train_batch_size=16, use_cpu=True, bf16=False, **{name: value})


def test_every_bounded_option_is_found():
    assert len(BOUNDS) >= 9
