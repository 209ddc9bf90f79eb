"""Faults of one line, each with the tests that notice it: `python tests/mutations.py`.

A mutation replaces a piece of text that occurs once in a file of the package. It is applied to a temporary copy, and
the tests that are named for it run there; one of them must fail. A mutation that no test can notice says why. The
script fails where a test passes that should not, where a text is no longer found, and where a test cannot run.

    python tests/mutations.py                  all of them
    python tests/mutations.py advantages/ hook those of files whose path has one of these in it
"""

import argparse
import ast
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "canon_trl"


@dataclass(frozen=True)
class Mutation:
    """A fault of one line.

    Attributes:
        file: below `canon_trl/`.
        before: a text that occurs there once.
        after: what takes its place.
        tests: those of which one must fail, `test_file.py::test_name`; the folder is found.
        survives: why no test can notice it, where none can.
    """

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    survives: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.before.strip()!r} -> {self.after.strip()!r}"

    def fault(self) -> str:
        """What is wrong with the text or the names of the tests, or an empty string."""
        path = PACKAGE / self.file
        count = path.read_text().count(self.before) if path.exists() else 0
        if count != 1:
            return f"{self}: the text occurs {count} times; it must occur once"
        missing = [test for test in self.tests if test not in names_in(path_of(test))]
        return f"{self}: there is no test {missing[0]!r}" if missing else ""

    @contextmanager
    def applied(self, package: Path) -> Iterator[None]:
        """Within it the package at that path has the fault."""
        path = package / self.file
        sound = path.read_text()
        path.write_text(sound.replace(self.before, self.after))
        try:
            yield
        finally:
            path.write_text(sound)


def path_of(test: str) -> Path:
    """The file of a test, whose name is unique in all folders."""
    name = test.split("::")[0]
    found = list(TESTS.rglob(name))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files in {TESTS} are named {name}")
    return found[0]


def names_in(path: Path) -> set[str]:
    """The tests of a file, `test_file.py::test_name` or `test_file.py::TestClass::test_name`."""
    top = ast.parse(path.read_text()).body
    inside = [(f"{each.name}::", part) for each in top if isinstance(each, ast.ClassDef) for part in each.body]
    functions = [(prefix, each) for prefix, each in [("", each) for each in top] + inside]
    return {f"{path.name}::{prefix}{each.name}" for prefix, each in functions if isinstance(each, ast.FunctionDef)}


def mutations(file: str, *rows: tuple[str, ...], survives: str = "") -> list[Mutation]:
    """`(before, after, *tests)` of one file."""
    return [Mutation(file, before, after, tuple(tests), survives) for before, after, *tests in rows]


ADVANTAGES = [
    *mutations(
        "advantages/canon.py",
        ("rank >= count // 2", "rank > count // 2", "test_advantages.py::test_split_puts_the_upper_half_higher"),
        ("& (rank < count)", "& (rank <= count)", "test_advantages.py::test_split_ignores_invalid_responses"),
        ("stable=True)  # NaN", "descending=True, stable=True)  # NaN", "test_golden.py::test_canon"),
        ("scaled - other_mean", "scaled + other_mean", "test_advantages.py::test_inter_group"),
        (
            "torch.where(tilted, alpha * scored, scored)",
            "torch.where(tilted, scored / alpha, scored)",
            "test_advantages.py::test_inter_group_alpha_on_the_higher_half",
        ),
        (
            'tilted = higher if alpha_group == "higher" else lower',
            'tilted = lower if alpha_group == "higher" else higher',
            "test_advantages.py::test_inter_group_alpha_on_the_lower_half",
        ),
        (
            "torch.where(higher, group_mean(scored, higher), group_mean(scored, lower))",
            "torch.where(higher, group_mean(scored, lower), group_mean(scored, higher))",
            "test_advantages.py::test_intra_group",
        ),
        (
            "torch.where(higher, has_spread(scored, higher), has_spread(scored, lower))",
            "has_spread(scored, valid)",
            "test_advantages.py::test_intra_group_is_exactly_0_in_a_half_with_equal_rewards",
        ),
        ("mu * inter + (1 - mu) * intra, valid", "(1 - mu) * inter + mu * intra, valid", "test_golden.py::test_canon"),
        (
            "gap = means[..., :1] - means[..., 1:]",
            "gap = means[..., 1:] - means[..., :1]",
            "test_advantages.py::test_statistics",
        ),
    ),
    *mutations(
        "advantages/groups.py",
        ("count / (count - 1)", "count / count", "test_advantages.py::test_grpo"),
        (
            "values - group_mean(values, mask)) ** 2, mask)",
            "values) ** 2, mask)",
            "test_golden.py::test_grpo",
        ),
        (
            "masked_fill(~mask, -torch.inf).amax",
            "amax",
            "test_advantages.py::test_invalid_responses_do_not_affect_others",
        ),
        (
            "highest - lowest > rounding_error",
            "highest - lowest >= 0 * rounding_error",
            "test_advantages.py::test_equal_rewards_give_exactly_0",
        ),
    ),
    *mutations(
        "rounding.py",
        ("return 8 *", "return 0 *", "test_reward_sums.py::test_equal_sums_of_different_parts_have_no_spread"),
    ),
    *mutations(
        "advantages/grpo.py",
        ("group_std(scored, valid) + eps", "group_std(scored, valid) - eps", "test_golden.py::test_grpo"),
    ),
    *mutations(
        "advantages/rloo.py",
        (
            "leave_one_out = count / (count - 1)",
            "leave_one_out = (count - 1) / count",
            "test_advantages.py::test_rloo",
        ),
    ),
    *mutations(
        "advantages/opo.py",
        ("(weights * scored.nan_to_num()).sum", "(scored.nan_to_num()).sum", "test_advantages.py::test_opo"),
        (
            "masked_fill(~valid, 0.0)",
            "clamp(min=0)",
            "test_advantages.py::test_unscored_responses_do_not_affect_others",
        ),
    ),
    *mutations(
        "advantages/reinforce_pp.py",
        ("(count / (count - 1))", "1", "test_golden.py::test_reinforce_pp_baseline"),
        ("(tokens * deviation**2)", "(deviation**2)", "test_golden.py::test_reinforce_pp_baseline"),
    ),
    *mutations(
        "advantages/a_grae.py",
        (
            "advantages = (1 - q) * easy + q * hard",
            "advantages = q * easy + (1 - q) * hard",
            "test_advantages.py::test_a_grae_weights_a_nearly_solved_group_by_form",
        ),
        (
            "(q / attenuation).clamp(max=1)",
            "(q / attenuation)",
            "test_advantages.py::test_a_grae_magnitudes_add_up_as_in_the_paper",
        ),
        (
            "torch.where(advantages > 0, damped",
            "torch.where(advantages < 0, damped",
            "test_advantages.py::test_a_grae",
        ),
        (
            "q = p.nanmean()",
            "q = p.mean()",
            "test_advantages.py::test_a_grae_excludes_unscored_groups_from_the_batch_mean",
        ),
    ),
    *mutations(
        "advantages/reinforce.py",
        ("as_float(rewards) - 1", "as_float(rewards) + 1", "test_advantages.py::test_reinforce_family"),
        ("torch.where(scored == 0, -1.0", "torch.where(scored == 0, 1.0", "test_golden.py::test_reinforce"),
    ),
    *mutations(
        "advantages/maxrl.py",
        ("& (mean > 0)", "", "test_maxrl.py::test_groups_with_advantage_0"),
        ("(scored - mean) / mean", "(scored - mean) / mean.sqrt()", "test_maxrl.py::test_a_case_by_hand"),
    ),
    *mutations(
        "advantages/astar_po.py",
        ("best + beta *", "best - beta *", "test_advantages.py::test_optimal_value"),
        (
            "((scored - best) / beta).exp()",
            "(scored / beta).exp() * (-best / beta).exp()",
            "test_advantages.py::test_optimal_value_never_overflows",
        ),
    ),
]

METRICS_AND_SCHEDULES = [
    *mutations(
        "metrics.py",
        (
            "return mean_over_response(-log_probs",
            "return mean_over_response(log_probs",
            "test_response_metrics.py::test_surprisal_is_positive",
        ),
        (
            "& ~values.isnan()",
            "",
            "test_response_metrics.py::test_mean_over_response_by_hand",
        ),
        (
            "seed * 1_000_003 + step",
            "seed * 1_000_003",
            "test_response_metrics.py::test_random_metric_depends_on_seed_and_step",
        ),
        ("values.float().masked_fill(~mask, 0.0)", "values.float()", "test_golden.py::test_entropy_metric"),
    ),
    *mutations(
        "schedules.py",
        ("return 1 - accuracy", "return accuracy", "test_golden.py::test_accuracy_schedules"),
        ("high * (step + 1) / warmup_steps", "high * step / warmup_steps", "test_golden.py::test_cosine_restarts"),
        ("% cycle_length / cycle_length", "/ cycle_length", "test_golden.py::test_cosine_restarts"),
    ),
]

TOKENS = [
    *mutations(
        "policy_losses/astar_po.py",
        ("(log_probs - ref_log_probs)", "(log_probs + ref_log_probs)", "test_astar_po.py::test_loss_by_hand"),
        (".masked_fill(~mask.bool(), 0.0)", "", "test_astar_po.py::test_loss_by_hand"),
        (".pow(2).mean()", ".pow(2).sum()", "test_astar_po.py::test_loss_by_hand"),
    ),
    *mutations(
        "policy_losses/disco.py",
        ("-objective +", "objective +", "test_disco.py::test_a_case_by_hand"),
        (".sum() / len(rewards)", ".sum() / mixed.sum()", "test_disco.py::test_gradients_match_the_released_code"),
        (
            "divergence.detach() - delta",
            "divergence.detach() + delta",
            "test_disco.py::test_gradients_match_the_released_code",
        ),
        (
            "(divergence.detach() - delta)).clamp(min=0)",
            "(divergence.detach() - delta))",
            "test_disco.py::test_gradients_match_the_released_code",
        ),
        (".logsumexp(dim=-1) - count.log()", ".logsumexp(dim=-1)", "test_disco.py::test_a_case_by_hand"),
    ),
    *mutations(
        "policy_losses/covariance_over_ranks.py",
        (
            "(advantages - mean_advantage) * (log_probs - mean_log_prob)",
            "(advantages - mean_advantage) * (mean_log_prob - log_probs)",
            "test_policy_losses.py::test_covariance",
        ),
        (
            "(policy_ratio < 1 - clip[0]) & (advantages < 0)",
            "(policy_ratio < 1 - clip[0]) & (advantages > 0)",
            "test_policy_losses.py::test_clip_cov_skips_tokens_that_ppo_clips",
        ),
        (
            "(covariance < bounds[1])",
            "(covariance <= bounds[1] + 9)",
            "test_policy_losses.py::test_masks_loss_and_gradient",
        ),
    ),
    *mutations(
        "policy_losses/covariance.py",
        (
            "advantages.masked_fill(selected[rows], 0.0)",
            "advantages.masked_fill(~selected[rows], 0.0)",
            "test_policy_losses.py::test_masks_loss_and_gradient",
        ),
        (
            "log_probs - old_log_probs, 0.0).abs()",
            "log_probs - old_log_probs, 0.0)",
            "test_policy_losses.py::test_masks_loss_and_gradient",
        ),
    ),
    *mutations(
        "selection.py",
        ("(further >= end)", "(further > end)", "test_selection.py::test_the_choice_matches_a_full_sort"),
        ("(sums / count.clamp(min=1))", "(sums / (count + 1))", "test_policy_losses.py::test_covariance"),
        ("+ 0.0  # -0.0 becomes 0.0", "", "test_selection.py::test_the_choice_matches_a_full_sort"),
        ("& ~values.isnan(), flip", ", flip", "test_selection.py::test_the_choice_matches_a_full_sort"),
        (
            "% 2**63)) + step)",
            "% 2**63)))",
            "test_selection.py::test_draws_are_uniform_and_differ_by_seed_and_step",
        ),
        ("below - 1 - order.flatten()", "order.flatten()", "test_selection.py::test_ties_go_to_tokens_sampled_first"),
    ),
    *mutations(
        "policy_rewards/rent.py",
        ("certainty = -entropies", "certainty = entropies", "test_rent.py::test_a_case_by_hand"),
        ("masked_fill(count == 0, empty)", "nan_to_num()", "test_rent.py::test_numbers_match_the_formula"),
    ),
    *mutations(
        "token_advantages/entropy_shaped.py",
        ("per_token + bonus", "per_token - bonus", "test_entropy_shaped.py::test_a_case_by_hand"),
        ("per_token.abs() / kappa", "per_token.abs() * kappa", "test_entropy_shaped.py::test_a_case_by_hand"),
        ("entropies.detach()", "entropies", "test_entropy_shaped.py::test_no_gradient_flows_through_the_entropies"),
    ),
    *mutations(
        "loss_terms/ter.py",
        ("torch.sign(before - target)", "torch.sign(target - before)", "test_ter.py::test_value_and_gradient_by_hand"),
        (
            "if measured else entropy.detach()",
            "if measured is not None else entropy.detach()",
            "test_ter.py::test_value_and_gradient_by_hand",
        ),
    ),
    *mutations(
        "controllers/e3_temperature.py",
        ("math.log(target / entropy)", "math.log(entropy / target)", "test_e3_temperature.py::test_a_case_by_hand"),
        (
            "self.updates <= self.init_steps:\n            self.initial",
            "self.updates < self.init_steps:\n            self.initial",
            "test_e3_temperature.py::test_numbers_match_the_released_code",
        ),
        (
            'self.updates = state["updates"]',
            "self.updates = 0",
            "test_e3_temperature.py::test_resuming_at_every_update",
        ),
    ),
    *mutations(
        "tokens.py",
        (
            "here = total * ranks",
            "here = total",
            "test_tokens.py::test_mean_and_gradient_do_not_depend_on_the_ranks",
        ),
        (
            "torch.stack([total.detach(), among.sum()",
            "torch.stack([total.detach(), among.numel() * torch.ones_like(total)",
            "test_tokens.py::test_mean_and_gradient_do_not_depend_on_the_ranks",
        ),
    ),
]

SAMPLING = [
    *mutations(
        "sampling/dynamic_sampling.py",
        (
            "(mean >= lower - margin)",
            "(mean > lower + margin)",
            "test_dynamic_sampling.py::test_a_band_of_a_named_reward_with_gaps",
        ),
        (
            "(mean <= upper + margin)",
            "(mean < upper - margin)",
            "test_dynamic_sampling.py::test_a_band_of_a_named_reward_with_gaps",
        ),
        ("nan_to_num(nan=-1.0)", "nan_to_num(nan=0.5)", "test_dynamic_sampling.py::test_verdicts"),
    ),
    *mutations(
        "sampling/group_collector.py",
        (
            "min(-(-missing * drawn // kept), at_most)",
            "min(missing * drawn // kept, at_most)",
            "test_dynamic_sampling.py::test_three_rounds_by_hand",
        ),
        ("drawn += len(spread)", "drawn = len(spread)", "test_dynamic_sampling.py::test_three_rounds_by_hand"),
        ("max(len(kept) - wanted, 0)", "len(kept)", "test_dynamic_sampling.py::test_three_rounds_by_hand"),
        ("len(rejected) - no_spread", "len(rejected)", "test_dynamic_sampling.py::test_three_rounds_by_hand"),
        ("< len(kept) * size", "<= len(kept) * size", "test_shrunken_batches.py::test_a_shrunken_batch"),
        (
            "group * size + response)",
            "group + response * size)",
            "test_dynamic_sampling.py::test_groups_without_spread_are_replaced",
        ),
        (
            "batch.drawn = torch.cat([sampled.rewards_per_func for sampled in rounds])",
            "batch.drawn = batch.rewards_per_func",
            "test_dynamic_sampling.py::test_replaced_groups_count_towards_constant_rewards",
        ),
    ),
    *mutations(
        "sampling/prompt_stream.py",
        (
            "self._place.drawn += count",
            "self._place.drawn = count",
            "test_prompt_stream.py::test_resuming_from_anywhere",
        ),
        ("+ passes + 1 + blocks", "+ 1 + blocks", "test_prompt_stream.py::test_prompts_come_in_passes"),
        (
            "+ passes + 1 + blocks",
            "+ passes + blocks",
            "test_prompt_stream.py::test_the_order_differs_from_the_samplers",
        ),
        (
            "place.blocks + 1, 0, following",
            "place.blocks + 1, 0, None",
            "test_prompt_stream.py::test_resuming_reads_a_block_once_and_skips_earlier_shards",
        ),
        (
            "passes, position = passes + 1, 0",
            "passes, position = passes, 0",
            "test_prompt_stream.py::test_prompts_come_in_passes",
        ),
    ),
    *mutations(
        "sampling/samplers.py",
        (
            "* alive\n",
            "\n",
            "test_samplers.py::test_nothing_is_added_to_a_response_after_its_end",
        ),
        (
            "(attention.cumsum(dim=1) - 1)",
            "attention.cumsum(dim=1)",
            "test_samplers.py::test_greedy_sampling_matches_generate",
        ),
        (
            "lengths[rows] += alive",
            "lengths[rows] += 1",
            "test_samplers.py::test_nothing_is_added_to_a_response_after_its_end",
        ),
        (
            "positions = attention.sum(dim=1, keepdim=True) - 1",
            "positions = attention.sum(dim=1, keepdim=True)",
            "test_samplers.py::test_greedy_sampling_matches_generate",
        ),
    ),
    *mutations(
        "sampling/chunks.py",
        ("seed * 1_000_003 + chunk", "seed * 1_000_003", "test_chunks.py::test_each_prompt_is_sampled_once_in_order"),
        (
            'whole.rfind(b"\\n") + 1',
            'whole.rfind(b"\\n")',
            "test_chunks.py::test_a_killed_run_resumes_with_the_same_numbers",
        ),
    ),
    *mutations(
        "sampling/optimal_values.py",
        (
            "(rewards.nan_to_num() != 0)",
            "(rewards.nan_to_num() > 0)",
            "test_astar_po.py::test_a_penalty_is_not_a_prompt_without_rewards",
        ),
    ),
]

EVALUATION = [
    *mutations(
        "evaluation/estimates.py",
        (
            "(i - k).clip(min=0) / i.clip(min=1)",
            "(i - k).clip(min=0) / (i + 1).clip(min=1)",
            "test_estimates.py::test_by_hand",
        ),
        ("(1 - factors.prod(axis=1))", "factors.prod(axis=1)", "test_estimates.py::test_by_hand"),
        (
            "(votes == most) & (most > 0)",
            "(votes == most)",
            "test_estimates.py::test_majority_is_the_mean_over_all_subsets",
        ),
        (
            "((1 - confidence) / 2) **",
            "(1 - confidence) **",
            "test_estimates.py::test_shares_of_0_and_1_have_a_clopper_pearson_interval",
        ),
    ),
    *mutations(
        "evaluation/comparisons.py",
        (
            "(2 * comparisons), pairs - 1)",
            "(2 * comparisons), pairs)",
            "test_comparison_report.py::TestPairedDifference::test_by_hand",
        ),
        ("std(ddof=1)", "std(ddof=0)", "test_comparison_report.py::TestPairedDifference::test_by_hand"),
        (
            "differences = ours - theirs",
            "differences = theirs - ours",
            "test_comparison_report.py::TestPairedDifference::test_by_hand",
        ),
    ),
    *mutations(
        "evaluation/responses.py",
        (
            "threshold - TOLERANCE",
            "threshold + TOLERANCE",
            "test_evaluation_numbers.py::test_threshold_of_a_right_response",
        ),
        (
            "(self.entropies * self.lengths).sum() / self.lengths.sum()",
            "self.entropies.mean()",
            "test_evaluation_numbers.py::test_numbers_by_hand",
        ),
        (
            "self.lengths.sum() / right.size",
            "right.sum() / right.size",
            "test_evaluation_numbers.py::test_numbers_by_hand",
        ),
    ),
    *mutations(
        "evaluation/entropy_law.py",
        ("return self.b - self.a\n", "return self.b + self.a\n", "test_entropy_law.py::test_an_exact_law_is_found"),
        ("np.stack([-np.exp(h)", "np.stack([np.exp(h)", "test_entropy_law.py::test_fit_from_a_training_log"),
    ),
]

HOOK = [
    *mutations(
        "hook/rollout.py",
        (
            "masked_fill(~local.unsqueeze(1), 0)",
            "masked_fill(local.unsqueeze(1), 0)",
            "test_shrunken_batches.py::test_a_shrunken_batch",
        ),
        (
            "self.accelerator.gather(mask.sum()).sum()",
            "self.accelerator.gather(mask.sum()).sum() * 2",
            "test_shrunken_batches.py::test_a_shrunken_batch",
        ),
        (
            "(self._steps_not_restored + self._step) // self._generate_every",
            "self._step // self._generate_every",
            "test_resume.py::test_counting_continues_when_a_rollout_is_sampled_again",
        ),
        (
            "seed=self.args.seed, step=step",
            "seed=0, step=step",
            "test_hook.py::test_random_metric_is_a_function_of_seed_and_rollout",
        ),
        (
            "snapped(phase.drawn[",
            "snapped(rewards_per_func[",
            "test_dynamic_sampling.py::test_schedules_read_the_accuracy_of_all_drawn_groups",
        ),
        (
            'output["advantages"].masked_fill(~mask, 0.0).sum(dim=1)',
            'output["advantages"].sum(dim=1)',
            "test_hook.py::test_token_level_advantages_are_averaged_over_the_models_tokens",
        ),
        (
            "rollout.valid.flatten()",
            "torch.ones_like(rollout.valid).flatten()",
            "test_astar_po.py::test_responses_without_a_reward_teach_nothing",
        ),
    ),
    *mutations(
        "hook/rollout_parts.py",
        (
            "return written & padded(",
            "return written | padded(",
            "test_metrics.py::test_tool_tokens_count_in_no_metric",
        ),
        (
            "written.to(attention_mask.dtype)], dim=1)",
            "trained.to(attention_mask.dtype)], dim=1)",
            "test_metrics.py::test_masked_truncated_completions_keep_their_length_and_entropy",
        ),
        (
            "for_trl = log_probs.masked_fill(~trained, 0.0)",
            "for_trl = log_probs.clone()",
            "test_metrics.py::test_masked_truncated_completions_keep_their_length_and_entropy",
        ),
        (
            "self.drawn = self.batch.drawn",
            "self.drawn = self.batch.rewards_per_func",
            "test_dynamic_sampling.py::test_schedules_read_the_accuracy_of_all_drawn_groups",
        ),
    ),
    *mutations(
        "hook/generation_recorder.py",
        (
            ".float() / self._temperature",
            ".float() * self._temperature",
            "test_metrics.py::test_entropy_and_surprisal_agree_with_a_scoring_pass",
        ),
        (
            "log_probs.clamp(min=torch.finfo(log_probs.dtype).min)",
            "log_probs",
            "test_metrics.py::test_a_token_with_probability_0_adds_nothing_to_the_entropy",
        ),
        (
            "-(finite.exp() * finite)",
            "(finite.exp() * finite)",
            "test_metrics.py::test_entropy_and_surprisal_agree_with_a_scoring_pass",
        ),
        ("[written].all())", "[written].any())", "test_metrics.py::test_recorded_tokens_must_match_the_completions"),
        (
            "self._log_probs[: len(steps) - 1]",
            "self._log_probs[1 : len(steps)]",
            "test_metrics.py::test_entropy_and_surprisal_agree_with_a_scoring_pass",
        ),
    ),
    *mutations(
        "hook/loss.py",
        (
            'inputs["advantages"] = token_advantages(inputs)',
            'inputs["advantages"] = inputs["advantages"]',
            "test_hook.py::test_advantages_on_padding_are_never_read",
        ),
        (
            "value = term / self.current_gradient_accumulation_steps",
            "value = term",
            "test_loss_stages.py::test_a_scalar_term_is_divided_by_the_accumulation_steps",
        ),
        (
            "loss = stages.whole(phase.tokens) / accumulated",
            "loss = stages.whole(phase.tokens)",
            "test_astar_po.py::test_the_loss_of_a_step",
        ),
        (
            "(loss - routing) * factor + routing",
            "loss * factor",
            "test_shrunken_batches.py::test_a_shrunken_batch_leaves_the_routing_loss_as_it_is",
        ),
        (
            "return loss + own if",
            "return loss - own if",
            "test_loss_stages.py::test_a_scalar_term_is_divided_by_the_accumulation_steps",
        ),
    ),
    *mutations(
        "hook/normaliser.py",
        ("values.masked_fill(~mask, 0.0)", "values", "test_seams.py::test_a_term_has_the_divisor_of_the_loss"),
        (
            "(len(kept) * trainer.max_completion_length)",
            "kept.numel()",
            "test_seams.py::test_a_term_has_the_divisor_of_the_loss",
        ),
    ),
    *mutations(
        "hook/token_inputs.py",
        (
            "return advantages.masked_fill(~mask, 0.0)",
            "return advantages",
            "test_hook.py::test_canon_advantages_reach_the_loss",
        ),
        (
            "rewards.repeat_interleave(rewards.shape[1], dim=0)",
            "rewards.repeat(rewards.shape[1], 1)",
            "test_loss_stages.py::test_a_method_sees_the_rollout_and_the_pass_of_its_micro_batch",
        ),
    ),
    *mutations(
        "hook/token_stages.py",
        (
            "masked_fill(returned.bool(), 0.0)",
            "masked_fill(~returned.bool(), 0.0)",
            "test_loss_stages.py::test_shapes_weights_and_masks_apply_in_order",
        ),
        (
            "tokens.advantages * returned if",
            "tokens.advantages + returned if",
            "test_loss_stages.py::test_shapes_weights_and_masks_apply_in_order",
        ),
        (
            "method(tokens), tokens).detach()",
            "method(tokens), tokens)",
            "test_loss_stages.py::test_no_gradient_goes_through_a_token_advantage",
        ),
    ),
    *mutations(
        "hook/stage_log.py",
        (
            "sums[:, 0] / sums[:, 1]",
            "sums[:, 1] / sums[:, 0]",
            "test_loss_stages.py::test_a_token_advantage_without_effect_changes_no_bit",
        ),
    ),
    *mutations(
        "hook/measured.py",
        (
            "entries[before.get(name, 0) :]",
            "entries",
            "test_measured.py::test_logged_numbers_are_means_over_the_step",
        ),
        (
            "self.totals.zero_()",
            "self.totals",
            "test_measured.py::test_every_token_has_the_same_weight_in_the_entropy",
        ),
        (
            ".masked_fill(~mask, 0.0).sum(dtype=torch.float64)",
            ".sum(dtype=torch.float64)",
            "test_measured.py::test_masked_tokens_never_count",
        ),
    ),
    *mutations(
        "hook/shrunken_steps.py",
        (
            "torch.where(share > 0, 1 / share, 0.0)",
            "torch.where(share > 0, share, 0.0)",
            "test_shrunken_batches.py::test_a_shrunken_batch_trains_like_a_full_one_of_that_size",
        ),
        (
            "places = places.any(dim=1)",
            "places = places.all(dim=1)",
            "test_shrunken_batches.py::test_a_shrunken_batch_trains_like_a_full_one_of_that_size",
        ),
        (
            "parameter.grad.mul_(factor)",
            "parameter.grad.mul_(1.0)",
            "test_shrunken_batches.py::test_responses_of_all_rollouts_of_an_optimiser_step_weigh_the_same",
        ),
        (
            "return factor * (before + loss) - before",
            "return factor * loss",
            "test_shrunken_batches.py::test_responses_of_all_rollouts_of_an_optimiser_step_weigh_the_same",
        ),
    ),
    *mutations(
        "hook/logs.py",
        (
            "1 - spread.sum() / scored.sum()",
            "spread.sum() / scored.sum()",
            "test_hook.py::test_log_and_completions_table",
        ),
        (
            "            table.pop()",
            "            table",
            "test_hook.py::test_a_small_evaluation_has_its_own_completions_table",
        ),
        (
            "advantages.abs().sum() / centred.abs().sum()",
            "advantages.sum() / centred.abs().sum()",
            "test_hook.py::test_log_and_completions_table",
        ),
        (
            "self._metrics[mode][name].pop()",
            "self._metrics[mode][name]",
            "test_reward_sums.py::test_a_function_without_weight_does_not_make_a_response_scored",
        ),
    ),
    *mutations(
        "hook/steering.py",
        (
            "self._knobs[name].value = self._configured_values[name]",
            "pass",
            "test_knobs.py::test_a_second_run_starts_over",
        ),
        (
            'self._knobs[name].value = state["knobs"][name]',
            "pass",
            "test_knobs.py::test_a_run_resumes_as_if_it_had_never_stopped",
        ),
        (
            'now, knob.value = knob.value, self._configured_values["temperature"]',
            "now = knob.value",
            "test_knobs.py::test_evaluation_uses_the_temperature_of_the_config",
        ),
        (
            'self._measured.numbers | {"entropy": entropy}',
            "self._measured.numbers",
            "test_knobs.py::test_e3_reads_the_entropy_of_the_rollout_at_its_temperature",
        ),
    ),
    *mutations(
        "hook/temperature.py",
        (
            "cell.cell_contents = temperature",
            "pass",
            "test_knobs.py::test_scores_are_those_of_a_trainer_made_at_the_temperature",
        ),
        (
            "trainer.generation_config.temperature = temperature",
            "pass",
            "test_knobs.py::test_e3_moves_the_temperature_between_rollouts",
        ),
    ),
    *mutations(
        "hook/counting.py",
        (
            "self.args.steps_per_generation * self.num_iterations",
            "self.args.steps_per_generation",
            "test_hook.py::test_rollouts_are_numbered",
        ),
    ),
]

MUTATIONS = [*ADVANTAGES, *METRICS_AND_SCHEDULES, *TOKENS, *SAMPLING, *EVALUATION, *HOOK]


def run_tests(tests: Sequence[str], package: Path, log: Path) -> int:
    """pytest's exit code for those tests with the package at `package`, in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(tests, package, log))
    process.start()
    process.join(600)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode if process.exitcode is not None else -1


def in_child(tests: Sequence[str], package: Path, log: Path) -> None:
    import pytest

    sys.dont_write_bytecode = True  # which might outlive the text that it was made from
    sys.path.insert(0, str(package.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    spec = importlib.util.find_spec("canon_trl")
    assert spec is not None and spec.origin == str(package / "__init__.py"), spec
    names = [f"{path_of(test)}::{'::'.join(test.split('::')[1:])}" for test in tests]
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent), *names])
        file.flush()
        os._exit(int(code))


def load_libraries() -> None:
    """What every child would import anew, for seconds; never the package itself."""
    sys.path.insert(0, str(TESTS))
    import conftest  # noqa: F401  # its environment variables come first
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from trl import GRPOConfig, GRPOTrainer  # noqa: F401
    from trl.rewards import accuracy_reward  # noqa: F401

    assert "canon_trl" not in sys.modules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="parts of the paths of files; default all files")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a mutation first")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if not options.paths or any(part in each.file for part in options.paths)]
    if faults := [fault for each in MUTATIONS if (fault := each.fault())]:
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    load_libraries()
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        package, log = Path(scratch) / "canon_trl", Path(scratch) / "log"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if not options.no_baseline:
            tests = sorted({test for each in chosen for test in each.tests})
            if run_tests(tests, package, log) != 0:
                print(log.read_text(), "a test fails without any mutation", sep="\n", file=sys.stderr)
                return 2
        for each in chosen:
            with each.applied(package):
                code = run_tests(each.tests, package, log)
            end = {0: "survived", 1: "killed"}.get(code, "BROKEN")
            if end == "survived" and not each.survives:
                end = "SURVIVED"
            ends[end] += 1
            print(f"{end:9} {each}" + (f" ({each.survives})" if end == "survived" else ""), flush=True)
            if end == "BROKEN":
                print(log.read_text()[-2000:])
    print(", ".join(f"{count} {end}" for end, count in ends.items()))
    return 1 if ends["SURVIVED"] or ends["BROKEN"] else 0


if __name__ == "__main__":
    sys.exit(main())
