"""Clip-Cov and KL-Cov: the selected tokens, and the gradient of TRL's loss."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from golden_cases import assert_golden, cases, tensor
from hypothesis import given
from hypothesis import strategies as st
from observe import count_forwards, keep_outputs, scored_entropy
from toy import assert_resumes, assert_same_parameters, logged, make_trainer, parameters, prompts
from trl import GRPOTrainer

from canon_trl.config.loss_stages import LossStages
from canon_trl.policy_losses import (
    POLICY_LOSSES,
    clip_cov_mask,
    covariance_statistics,
    kl_cov,
    kl_cov_mask,
    token_covariance,
)
from canon_trl.policy_losses.covariance import clip_cov_choice, kl_cov_choice
from canon_trl.tokens import Tokens

COUNTS = [case for case in cases("covariance", method="clip_cov") if "clip_cov_count" in case["name"]]
GOLDEN = [case for case in cases("covariance") if case not in COUNTS]


def by_name(found):
    assert found, "no golden case matches"
    return [pytest.param(case["inputs"], case["expected"], id=case["name"]) for case in found]


def tokens(inputs, dtype=torch.float64):
    names = ("log_prob", "old_log_prob", "advantages")
    return *(tensor(inputs[name], dtype) for name in names), tensor(inputs["response_mask"]).bool()


def seen_by_methods(log_probs, old, advantages, mask, **given):
    """The tokens that methods receive on a single rank."""
    advantages = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).expand(mask.shape)
    given |= {"log_probs": log_probs, "old_log_probs": old, "advantages": advantages, "mask": mask}
    return Tokens.example(*mask.shape, group=1, **given)


def selected_by(method, tokens):
    choice = {"clip_cov": clip_cov_choice, "kl_cov": kl_cov_choice}[method.name]
    options = {name: value for name, value in method.all_options.items() if name != "coef"}
    ((selected, _), _) = choice(tokens.within, **options)
    return selected


def bounds(method, inputs):
    """The loss's clip bounds, as distances of the ratio from 1."""
    return (inputs["clip_low"], inputs["clip_high"]) if method.clips else (1.0, math.inf)


def policy_loss(inputs, mask):
    if inputs["method"] == "kl_cov":
        # The authors' field is in percent, and capped at the number of valid tokens.
        percent = min(inputs["k_percent"], int(mask.sum())) if inputs["flavour"] == "prime_rl" else None
        fraction = inputs["kl_cov_ratio"] if percent is None else percent / 100
        options = {"fraction": fraction, "coef": inputs["ppo_kl_coef"]}
    else:
        options = {
            name: inputs[f"clip_cov_{key}"] for name, key in {"ratio": "ratio", "low": "lb", "high": "ub"}.items()
        }
    return POLICY_LOSSES[inputs["method"]].with_options(options, where="")


def aggregate(per_token, mask, inputs):
    total = (per_token * mask).sum()
    rows = mask.shape[0] if inputs["flavour"] == "prime_rl" else int(mask.any(dim=1).sum())
    count = mask.sum() + (1e-8 if inputs["flavour"] == "prime_rl" else 0)
    return {
        "token-mean": total / count,
        "seq-mean-token-sum": total / rows,
        "seq-mean-token-sum-norm": total / mask.shape[1],
    }[inputs["loss_agg_mode"]]


@pytest.mark.parametrize(("inputs", "expected"), by_name(GOLDEN))
def test_masks_loss_and_gradient(inputs, expected):
    log_probs, old, advantages, mask = tokens(inputs)
    log_probs.requires_grad_()
    method = policy_loss(inputs, mask)
    seen = seen_by_methods(log_probs, old, advantages, mask, clip=bounds(method, inputs))
    assert selected_by(method, seen).long().tolist() == expected["selected" if "selected" in expected else "zeroed"]
    shaped, added = (method(seen), 0.0) if method.name == "clip_cov" else (seen.advantages, method(seen))
    ratio = (log_probs - old).exp()
    low, high = bounds(method, inputs)
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = aggregate(added - torch.minimum(ratio * shaped, clipped * shaped), mask, inputs)
    assert_golden(loss, expected["loss"])
    assert_golden(torch.autograd.grad(loss, log_probs)[0], expected["grad_log_prob"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(COUNTS))
def test_the_random_choice_has_the_right_size(inputs, expected):
    log_probs, old, advantages, mask = tokens(inputs)
    method, drawn = policy_loss(inputs, mask), set()
    for seed in range(20):
        seen = seen_by_methods(log_probs, old, advantages, mask, clip=bounds(method, inputs), seed=seed)
        selected = selected_by(method, seen)
        assert int(selected.sum()) == expected["n_zeroed"]
        assert (selected.long() <= tensor(expected["candidates"])).all()
        drawn.add(tuple(selected.flatten().tolist()))
    assert len(drawn) > 1, "chosen at random"


LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make_trainer(tmp_path_factory.mktemp("loss"), num_iterations=2, policy_loss="clip_cov")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("inputs", "expected"), by_name([case for case in GOLDEN if "empty_row" not in case["name"]]))
def test_gradient_of_trls_loss(trainer, monkeypatch, inputs, expected, loss_type):
    """TRL's own loss on the golden tokens, with each of its divisors."""
    log_probs, old, advantages, mask = tokens(inputs)
    log_probs.requires_grad_()
    scored = log_probs, torch.zeros_like(old), None
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda *args, **kwargs: scored)
    method = policy_loss(inputs, mask)
    monkeypatch.setattr(trainer, "_stages", LossStages(policy_loss=method))
    for name, value in zip(("epsilon_low", "epsilon_high"), bounds(method, inputs), strict=True):
        monkeypatch.setattr(trainer, name, value)
    monkeypatch.setattr(trainer, "loss_type", loss_type)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 1, raising=False)
    rows, width = mask.shape
    batch = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, width, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
        "response": torch.arange(rows),
    }
    trainer.model.train()
    monkeypatch.setattr(trainer, "_buffered_inputs", [batch])
    monkeypatch.setattr(trainer, "_rollout_width", width)
    monkeypatch.setattr(trainer.args, "generation_batch_size", rows)
    loss = trainer.compute_loss(trainer.model, batch)
    got = torch.autograd.grad(loss, log_probs)[0]
    # The reference's gradient per token, with TRL's divisor instead of the reference's.
    divisor = {
        "token-mean": mask.sum().double(),
        "seq-mean-token-sum": tensor(float(rows)),
        "seq-mean-token-sum-norm": tensor(float(width)),
    }[inputs["loss_agg_mode"]]
    trls = {
        "grpo": 1 / (rows * mask.sum(dim=1, keepdim=True)),
        "bnpo": 1 / mask.sum(),
        "dapo": 1 / mask.sum(),
        "dr_grpo": tensor(1 / (rows * trainer.max_completion_length)),
    }[loss_type]
    want = tensor(expected["grad_log_prob"]) * divisor * trls
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, atol=1e-8, rtol=1e-6)  # TRL's divisors are in float32
    assert (got[~mask] == 0).all()


# By hand


def test_covariance():
    # valid: A = 1, 1, -1 (mean 1/3), lp = -1, -2, -3 (mean -2); the masked value is poison
    advantages, mask = torch.tensor([1.0, -1.0]), torch.tensor([[1, 1], [1, 0]])
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -1e4]])
    covariance = token_covariance(log_probs, advantages, mask)
    torch.testing.assert_close(covariance, torch.tensor([[2 / 3, 0.0], [4 / 3, 0.0]]))
    assert kl_cov_mask(log_probs, advantages, mask, fraction=0.4).tolist() == [[False, False], [True, False]]
    assert kl_cov_mask(log_probs, advantages, mask, fraction=0.7).tolist() == [[True, False], [True, False]]


def test_clip_cov_skips_tokens_that_ppo_clips():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    advantages, mask = torch.tensor([1.0, -1.0]), torch.ones(2, 2)
    # cov: mean A 0, mean lp -1.75 -> 0.75, -0.25, 1.25, -0.75; the bounds are strict
    options = {"ratio": 1.0, "low": 0.0, "high": 1.25, "epsilon_low": 0.2, "epsilon_high": 0.2}
    assert clip_cov_mask(log_probs, log_probs, advantages, mask, **options).tolist() == [[True, False], [False, False]]
    old = log_probs - torch.tensor([[math.log(1.3), 0.0], [0.0, 0.0]])  # ratio 1.3 with A > 0: clipped already
    assert not clip_cov_mask(log_probs, old, advantages, mask, **options).any()
    assert clip_cov_mask(log_probs, old, advantages, mask, **(options | {"epsilon_high": 0.4}))[0, 0]
    old = log_probs - torch.tensor([[0.0, 0.0], [math.log(0.7), 0.0]])  # ratio 0.7 with A < 0: clipped already
    options["high"] = 2.0
    assert clip_cov_mask(log_probs, old, advantages, mask, **options).tolist() == [[True, False], [False, False]]
    assert clip_cov_mask(log_probs, old, advantages, mask, **(options | {"epsilon_low": 0.4}))[1, 0]


def test_statistics():
    covariance = torch.arange(100.0).view(4, 25)
    selected = covariance >= 98
    statistics = covariance_statistics(covariance, selected, torch.ones(4, 25))
    assert {name: round(value.item(), 6) for name, value in statistics.items()} == {
        "frac_gated": 0.02,
        "covariance_mean": 49.5,
        "covariance_top_0.02_percent": 99.0,
        "covariance_top_0.2_percent": 99.0,
        "covariance_top_2_percent": 98.5,
    }


# Properties


@st.composite
def token_tables(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.lists(st.floats(-4, 4, width=32), min_size=rows * width, max_size=rows * width)
    log_probs, old, advantages = (torch.tensor(draw(numbers)).view(rows, width) for _ in range(3))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))).view(rows, width)
    return log_probs, old, advantages, mask


def select_by_kl_cov(log_probs, old, advantages, mask, generator):
    return kl_cov_mask(log_probs, advantages, mask, fraction=0.3)


def select_by_clip_cov(log_probs, old, advantages, mask, generator):
    options = {"epsilon_low": 0.2, "epsilon_high": 0.28, "low": -1.0, "ratio": 0.5, "generator": generator}
    return clip_cov_mask(log_probs, old, advantages, mask, **options)


SELECT = {"clip_cov": select_by_clip_cov, "kl_cov": select_by_kl_cov}


@pytest.mark.parametrize("name", SELECT)
@given(table=token_tables())
def test_masked_tokens_never_count(name, table):
    log_probs, old, advantages, mask = table
    select = SELECT[name]

    def seeded():
        return torch.Generator().manual_seed(0)

    plain = select(log_probs, old, advantages, mask, seeded())
    for poison in (1e6, float("nan"), float("inf")):
        poisoned = [values.masked_fill(~mask, poison) for values in (log_probs, old, advantages)]
        assert torch.equal(select(*poisoned, mask, seeded()), plain)
    assert not (plain & ~mask).any()


@pytest.mark.parametrize("name", SELECT)
@given(table=token_tables())
def test_the_number_of_selected_tokens(name, table):
    log_probs, old, advantages, mask = table
    valid = int(mask.sum())
    selected = int(SELECT[name](log_probs, old, advantages, mask, torch.Generator()).sum())
    budget = max(1, math.floor((0.5 if name == "clip_cov" else 0.3) * valid))
    if name == "kl_cov":
        assert selected == min(budget, valid)
    else:
        assert selected <= budget


@given(table=token_tables(), shift=st.sampled_from([-2.0, 0.5, 4.0]))
def test_covariance_is_invariant_to_shifts(table, shift):
    log_probs, _, advantages, mask = (values.double() if values.is_floating_point() else values for values in table)
    want = token_covariance(log_probs, advantages, mask)
    torch.testing.assert_close(token_covariance(log_probs + shift, advantages - shift, mask), want, atol=1e-9, rtol=0)
    if mask.any():
        mean = (want.sum() / mask.sum()).item()
        valid = torch.stack([log_probs[mask], advantages[mask]])
        assert mean == pytest.approx(torch.cov(valid, correction=0)[0, 1].item(), abs=1e-9)


def test_unselected_tokens_do_not_overflow_the_penalty():
    old = torch.tensor([[-1.0, -1.0]])
    log_probs = torch.tensor([[-1.5, -200.0]], requires_grad=True)  # a ratio that underflows, not selected
    # The first token has the larger covariance: A is 1 and 0, lp -0.5 and -200.
    seen = seen_by_methods(log_probs, old, torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    penalty = kl_cov(log_probs, old, seen.within, fraction=0.5, coef=2.0)
    loss = (penalty - (log_probs - old).exp() * seen.advantages).sum()
    assert loss.item() == pytest.approx(-math.exp(-0.5) + 2.0 * 0.5)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient.tolist() == [[pytest.approx(-math.exp(-0.5) - 2.0), 0.0]]


@given(table=token_tables())
def test_inputs_are_not_modified_and_bf16_is_compared_in_float32(table):
    log_probs, old, advantages, mask = table
    before = [values.clone() for values in table]
    low = [values.bfloat16() for values in (log_probs, advantages)]
    assert torch.equal(token_covariance(*low, mask), token_covariance(low[0].float(), low[1].float(), mask))
    seen = seen_by_methods(log_probs, old, advantages, mask)
    for method in ("clip_cov", "kl_cov"):
        POLICY_LOSSES[method](seen)
    assert all(torch.equal(was, now) for was, now in zip(before, table, strict=True))


# In training

UPDATES = {"max_steps": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2}
OPTIONS = {
    "clip_cov": {"policy_loss_kwargs": {"low": -5.0, "ratio": 0.3}},
    "kl_cov": {"policy_loss_kwargs": {"fraction": 0.2, "coef": 2.0}},
}


@pytest.fixture
def choices(monkeypatch):
    """The candidates and the selected tokens of each choice, in order."""
    seen, once = [], Tokens.once

    def keep(tokens, key, search):
        searched = []

        def counted():
            searched.append(key)
            return search()

        found = once(tokens, key, counted)
        if searched:
            seen.append((tokens, found[0]))
        return found

    monkeypatch.setattr(Tokens, "once", keep)
    return seen


@pytest.mark.parametrize("name", OPTIONS)
def test_logged_statistics_match_the_selection(tmp_path, choices, name):
    trainer = make_trainer(tmp_path, policy_loss=name, **OPTIONS[name], **UPDATES)
    choices.clear()
    trainer.train()
    assert len(choices) == 8  # micro-batches
    for step, entry in enumerate(logged(trainer)):
        shares, means, tops = [], [], []
        for tokens, selected in choices[2 * step : 2 * step + 2]:
            mask = tokens.mask
            covariance = token_covariance(tokens.log_probs, tokens.advantages, mask)[mask]
            shares.append(selected.sum() / mask.sum())
            means.append(covariance.mean())
            tops.append(covariance.sort(descending=True).values[: max(1, int(0.02 * mask.sum()))].mean())
        for key, values in [("frac_gated", shares), ("covariance_mean", means), ("covariance_top_2_percent", tops)]:
            assert entry[f"policy_loss/{key}"] == pytest.approx(torch.stack(values).mean().item(), abs=1e-6), key
        assert entry["policy_loss/frac_gated"] > 0
        assert entry["entropy"] > 0


def trained(folder, **options):
    trainer = make_trainer(folder, **(UPDATES | options))
    trainer.train()
    return trainer


def test_kl_cov_clips_no_ratio(tmp_path):
    """Without a penalty it is the plain policy gradient, as PPO is with bounds that no ratio reaches."""
    options = {"learning_rate": 1e-2, "advantage_estimator": "grpo"}
    free = trained(tmp_path, policy_loss="kl_cov", policy_loss_kwargs={"coef": 0.0}, **options)
    wide = trained(tmp_path, epsilon=1.0, epsilon_high=1e9, **options)
    clipped = trained(tmp_path, **options)
    assert all(entry["clip_ratio/region_mean"] == 0 for entry in logged(free))
    assert any(entry["clip_ratio/region_mean"] > 0 for entry in logged(clipped)), "the case needs clipped ratios"
    assert_same_parameters(parameters(free), parameters(wide))


def test_clip_cov_without_candidates_is_ppo(tmp_path):
    options = {"learning_rate": 1e-2}
    gated = trained(tmp_path, policy_loss="clip_cov", policy_loss_kwargs={"low": 1e6, "high": 1e7}, **options)
    assert_same_parameters(parameters(gated), parameters(trained(tmp_path, **options)))


def test_the_batch_scope_reads_the_rollouts_log_probabilities(tmp_path, choices):
    """They are recorded during generation, without another forward pass."""
    trainer = make_trainer(
        tmp_path,
        advantage_estimator="dr_grpo",
        policy_loss="clip_cov",
        policy_loss_kwargs={"low": -5.0, "ratio": 0.3, "scope": "batch"},
        gradient_accumulation_steps=2,
        max_steps=1,
    )
    choices.clear()
    outputs, calls = keep_outputs(trainer), count_forwards(trainer)
    trainer.train()
    assert calls == {"without_grad": 0, "with_grad": 2}
    ((tokens, _),) = choices
    assert sorted(tokens.response.tolist()) == list(range(16))
    _, surprisal = scored_entropy(trainer_at_start(tmp_path), outputs[0])
    order = tokens.response.argsort()
    log_probs, mask = tokens.log_probs[order], tokens.mask[order]
    torch.testing.assert_close(-(log_probs * mask).sum(1) / mask.sum(1), surprisal, atol=2e-5, rtol=0)
    assert torch.equal(tokens.advantages[order, 0], outputs[0]["advantages"])


def test_the_batch_scope_with_a_scoring_pass(tmp_path):
    options = {"low": -5.0, "scope": "batch"}
    trainer = make_trainer(
        tmp_path,
        advantage_estimator="grpo",
        policy_loss="clip_cov",
        policy_loss_kwargs=options,
        entropy_source="forward",
        max_steps=1,
    )
    calls = count_forwards(trainer)
    trainer.train()
    assert calls == {"without_grad": 1, "with_grad": 1}


def trainer_at_start(folder):
    return make_trainer(folder, advantage_estimator="dr_grpo")


def without_ties(prompts, trainer):
    """Responses that differ from their first token on, so that rounding cannot decide between tied tokens."""
    texts = [f"{row % 4}{'7' * (row % 3)}#{row % 10}" for row in range(len(prompts))]
    completion_ids = trainer.processing_class(texts)["input_ids"]
    return {
        "prompt_ids": trainer.processing_class(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }


def first_is_right(completions, **kwargs):
    return [float(row % 4 == 0) for row in range(len(completions))]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_batch_scope_does_not_depend_on_micro_batches(tmp_path, choices, name):
    """One optimiser step of 16 responses has the same tokens and gradient in one, two or four micro-batches."""
    selections, moved = [], []
    for parts in (1, 2, 4):
        options = OPTIONS[name]["policy_loss_kwargs"] | {"scope": "batch"}
        if name == "kl_cov":  # at the first update, rounding decides the penalty's sign
            options["coef"] = 1e-4
        trainer = make_trainer(
            tmp_path,
            trainer_options={"reward_funcs": first_is_right, "rollout_func": without_ties},
            policy_loss=name,
            policy_loss_kwargs=options,
            advantage_estimator="dr_grpo",
            per_device_train_batch_size=16 // parts,
            gradient_accumulation_steps=parts,
            num_iterations=2,
            max_steps=2,
            optim="sgd",
            learning_rate=1.0,
        )
        choices.clear()
        trainer.train()
        selections.append([selected[tokens.response.argsort()] for tokens, selected in choices])
        moved.append(parameters(trainer))
    assert len(selections[0]) == 2 and selections[0][0].any()
    for other in selections[1:]:
        assert all(torch.equal(a, b) for a, b in zip(selections[0], other, strict=True))
    for other in moved[1:]:
        for key, value in moved[0].items():
            torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4)


def with_a_tool(prompts, trainer, *, unknown=False):
    """`1..1#1`, where a tool wrote the `#`; the log-probability of the first token may be unknown."""
    tokenizer, ones = trainer.processing_class, [1 + row % 3 for row in range(len(prompts))]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": tokenizer(["1" * count + "#1" for count in ones])["input_ids"],
        "env_mask": [[1] * count + [0, 1] for count in ones],
        "logprobs": [
            [None if unknown else -0.1 * row, *[-0.1 * row] * (count - 1), -90.0, -0.2 * row]
            for row, count in enumerate(ones)
        ],
    }


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("scope", ["micro_batch", "batch"])
def test_tool_tokens_and_tokens_without_log_probability_are_never_selected(tmp_path, scope, unknown):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": first_is_right, "rollout_func": partial(with_a_tool, unknown=unknown)},
        advantage_estimator="dr_grpo",
        policy_loss="kl_cov",
        policy_loss_kwargs={"fraction": 0.1, "scope": scope},
        max_steps=1,
    )
    trainer.train()
    entry = logged(trainer)[0]
    ones = [1 + row % 3 for row in range(8)]
    if scope == "micro_batch":  # takes the loss's own log-probabilities, which are all known
        valid = sum(ones) + 8  # 23 of the model, 8 of the tool
        assert entry["policy_loss/frac_gated"] == pytest.approx(2 / valid)
        return
    table = []  # advantage and log-probability of every token that counts
    for row, count in enumerate(ones):
        advantage = 0.75 if row % 4 == 0 else -0.25
        table += [(advantage, -0.1 * row)] * (count - unknown) + [(advantage, -0.2 * row)]
    covariance = torch.cov(torch.tensor(table).T, correction=0)[0, 1].item()
    assert entry["policy_loss/covariance_mean"] == pytest.approx(covariance, rel=1e-4)
    # floor(0.1 * 23) = 2, floor(0.1 * 15) = 1
    assert entry["policy_loss/frac_gated"] == pytest.approx(1 / 15 if unknown else 2 / 23)


def gated_gradients(folder, scope, *, resume=None, **options):
    """The gradient norms of a run with fixed responses and a frozen model, so that only the selection differs."""
    gate = {"policy_loss": "clip_cov", "policy_loss_kwargs": {"low": -5.0, "ratio": 0.3, "scope": scope}}
    trainer = make_trainer(
        folder,
        trainer_options={"reward_funcs": first_is_right, "rollout_func": with_a_tool, "train_dataset": prompts(2)},
        advantage_estimator="dr_grpo",
        shuffle_dataset=False,
        learning_rate=0.0,
        **(gate if scope else {}),
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return [entry["grad_norm"] for entry in logged(trainer)]


@pytest.mark.parametrize("scope", ["micro_batch", "batch", None])
def test_steps_and_seeds_draw_differently_among_the_same_candidates(tmp_path, scope):
    norms = [norm for seed in (1, 2) for norm in gated_gradients(tmp_path, scope, seed=seed, max_steps=3)]
    apart = min(abs(a / b - 1) for a, b in combinations(norms, 2))
    assert apart > 1e-4 if scope else apart < 1e-5


@pytest.mark.parametrize("scope", ["micro_batch", "batch"])
def test_draws_continue_after_a_rollout_is_sampled_again(tmp_path, scope):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    norms = gated_gradients(tmp_path, scope, **options)
    (tmp_path / "checkpoint-2" / "rollout_state_0.pt").unlink()
    resumed = gated_gradients(tmp_path, scope, resume=str(tmp_path / "checkpoint-2"), **options)
    assert resumed == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_evaluation_during_a_rollout_changes_nothing(tmp_path, name):
    """The evaluation's responses are shorter than the training's."""

    def shorter_in_evaluation(prompts, trainer):
        written = without_ties(prompts, trainer)
        if not trainer.model.training:
            for part in ("completion_ids", "logprobs"):
                written[part] = [row[-2:] for row in written[part]]
        return written

    def moved(**options):
        data = {"train_dataset": prompts(16), "eval_dataset": prompts(8)}
        data |= {"reward_funcs": first_is_right, "rollout_func": shorter_in_evaluation}
        trainer = make_trainer(tmp_path, trainer_options=data, policy_loss=name, **OPTIONS[name], **UPDATES, **options)
        trainer.train()
        return parameters(trainer)

    assert_same_parameters(moved(eval_strategy="steps", eval_steps=1), moved())


@pytest.mark.parametrize("scope", ["micro_batch", "batch"])
@pytest.mark.parametrize("name", OPTIONS)
def test_resume(tmp_path, name, scope):
    kwargs = OPTIONS[name]["policy_loss_kwargs"] | {"scope": scope}
    assert_resumes(make_trainer, tmp_path, policy_loss=name, policy_loss_kwargs=kwargs, **UPDATES)


def test_statistics_exclude_padding_from_the_largest_covariances():
    """Padding has covariance 0, more than all tokens here."""
    covariance = torch.tensor([[-3.0, -1.0, 0.0], [-2.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = covariance_statistics(covariance, torch.zeros(2, 3, dtype=torch.bool), mask)
    assert found["covariance_mean"].item() == -2.0
    assert [found[f"covariance_top_{percent}_percent"].item() for percent in (0.02, 0.2, 2)] == [-1.0] * 3
