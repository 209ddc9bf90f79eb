"""Mutation testing with one-line faults, each of which a test must detect: `python tests/mutations.py`.

A mutation replaces text that occurs once in a file of the package. The script applies it to a temporary copy and runs
its test there, which must fail. A mutation that no test can detect states the reason. The script exits with an error
if a test passes with a mutation, if a text does not occur, or if a test cannot run.

    python tests/mutations.py                  all mutations
    python tests/mutations.py advantages/ hook mutations of files whose path contains one of these
"""

import argparse
import ast
import importlib.util
import multiprocessing
import os
import re
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
CHANGE = re.compile(r"\{\{(.+?) => (.*?)\}\}")


@dataclass(frozen=True)
class Mutation:
    """A one-line fault.

    Attributes:
        file: path in `canon_trl/`.
        before: text that occurs once in the file.
        after: its replacement.
        test: the test that must fail, `test_file.py::test_name`, from any folder.
        survives: why no test can detect the fault; empty if one does.
    """

    file: str
    before: str
    after: str
    test: str
    survives: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.before.strip()!r} -> {self.after.strip()!r}"

    def fault(self) -> str:
        """Return what is wrong with the text or the test, or an empty string."""
        path = PACKAGE / self.file
        count = path.read_text().count(self.before) if path.exists() else 0
        if count != 1:
            return f"{self}: the text occurs {count} times; it must occur once"
        return "" if self.test in names_in(path_of(self.test)) else f"{self}: there is no test {self.test!r}"

    @contextmanager
    def applied(self, package: Path) -> Iterator[None]:
        """Apply the fault to the package at this path inside the `with` block."""
        path = package / self.file
        original = path.read_text()
        path.write_text(original.replace(self.before, self.after))
        try:
            yield
        finally:
            path.write_text(original)


def path_of(test: str) -> Path:
    """Return the file of a test; its name is unique among all folders."""
    name = test.split("::")[0]
    found = list(TESTS.rglob(name))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files in {TESTS} are named {name}")
    return found[0]


def names_in(path: Path) -> set[str]:
    """Return the tests of a file, `test_file.py::test_name` or `test_file.py::TestClass::test_name`."""
    top = ast.parse(path.read_text()).body
    inside = [(f"{each.name}::", part) for each in top if isinstance(each, ast.ClassDef) for part in each.body]
    functions = [(prefix, each) for prefix, each in [("", each) for each in top] + inside]
    return {f"{path.name}::{prefix}{each.name}" for prefix, each in functions if isinstance(each, ast.FunctionDef)}


def mutations(file: str, test_file: str, *rows: tuple[str, str], survives: str = "") -> list[Mutation]:
    """Make the mutations of one file.

    Args:
        file: path in `canon_trl/`.
        test_file: contains the tests that are named without a file.
        rows: the text, in which `{{old => new}}` marks what changes, and the name of the test.
        survives: why no test can detect them.
    """
    return [
        Mutation(
            file,
            before=CHANGE.sub(lambda change: change[1], text),
            after=CHANGE.sub(lambda change: change[2], text),
            test=test if ".py::" in test else f"{test_file}::{test}",
            survives=survives,
        )
        for text, test in rows
    ]


MUTATIONS = [
    *mutations(
        "advantages/canon.py",
        "test_advantages.py",
        ("rank {{>= => >}} count // 2", "test_split_puts_the_upper_half_higher"),
        ("& (rank {{< => <=}} count)", "test_split_ignores_invalid_responses"),
        ("{{stable => descending=True, stable}}=True)  # NaN", "test_golden.py::test_canon"),
        ("scaled {{- => +}} other_mean", "test_inter_group"),
        (
            "torch.where(tilted, {{alpha * scored => scored / alpha}}, scored)",
            "test_inter_group_alpha_on_the_higher_half",
        ),
        (
            'tilted = {{higher => lower}} if alpha_group == "higher" else {{lower => higher}}',
            "test_inter_group_alpha_on_the_lower_half",
        ),
        (
            "torch.where(higher, group_mean(scored, {{higher => lower}}), group_mean(scored, {{lower => higher}}))",
            "test_intra_group",
        ),
        (
            "torch.where(higher, has_spread(scored, {{higher => valid}}), has_spread(scored, {{lower => valid}}))",
            "test_intra_group_is_exactly_0_in_a_half_with_equal_rewards",
        ),
        ("{{mu * inter + (1 - mu) => (1 - mu) * inter + mu}} * intra, valid", "test_golden.py::test_canon"),
        ("gap = means[..., {{:1 => 1:}}] - means[..., {{1: => :1}}]", "test_statistics"),
    ),
    *mutations(
        "advantages/groups.py",
        "test_advantages.py",
        ("count / {{(count - 1) => count}}", "test_grpo"),
        ("values{{ - group_mean(values, mask) => }}) ** 2, mask)", "test_golden.py::test_grpo"),
        ("{{masked_fill(~mask, -torch.inf). => }}amax", "test_invalid_responses_do_not_affect_others"),
        ("highest - lowest {{> => >= 0 *}} rounding_error", "test_equal_rewards_give_exactly_0"),
    ),
    *mutations(
        "rounding.py",
        "test_reward_sums.py",
        ("return {{8 => 0}} *", "test_equal_sums_of_different_parts_have_no_spread"),
    ),
    *mutations(
        "advantages/grpo.py",
        "test_golden.py",
        ("group_std(scored, valid) {{+ => -}} eps", "test_grpo"),
    ),
    *mutations(
        "advantages/rloo.py",
        "test_advantages.py",
        ("leave_one_out = {{count / (count - 1) => (count - 1) / count}}", "test_rloo"),
    ),
    *mutations(
        "advantages/opo.py",
        "test_advantages.py",
        ("({{weights * scored => scored}}.nan_to_num()).sum", "test_opo"),
        ("{{masked_fill(~valid, 0.0) => clamp(min=0)}}", "test_unscored_responses_do_not_affect_others"),
    ),
    *mutations(
        "advantages/reinforce_pp.py",
        "test_golden.py",
        ("{{(count / (count - 1)) => 1}}", "test_reinforce_pp_baseline"),
        ("({{tokens * deviation => deviation}}**2)", "test_reinforce_pp_baseline"),
    ),
    *mutations(
        "advantages/a_grae.py",
        "test_advantages.py",
        (
            "advantages = {{(1 - q) * easy + q => q * easy + (1 - q)}} * hard",
            "test_a_grae_weights_a_nearly_solved_group_by_form",
        ),
        ("(q / attenuation){{.clamp(max=1) => }}", "test_a_grae_magnitudes_add_up_as_in_the_paper"),
        ("torch.where(advantages {{> => <}} 0, damped", "test_a_grae"),
        ("q = p.{{nanmean => mean}}()", "test_a_grae_excludes_unscored_groups_from_the_batch_mean"),
    ),
    *mutations(
        "advantages/reinforce.py",
        "test_advantages.py",
        ("as_float(rewards) {{- => +}} 1", "test_reinforce_family"),
        ("torch.where(scored == 0, {{- => }}1.0", "test_golden.py::test_reinforce"),
    ),
    *mutations(
        "advantages/pass_at_k.py",
        "test_pass_at_k_training.py",
        ("torch.arange({{1 => 0}}, k,", "test_a_case_by_hand"),
        ("torch.where(right, all_fail, all_fail {{- => +}} others_fail)", "test_a_case_by_hand"),
        ("{{ & (deviation > 0) => }}", "test_groups_with_advantage_0"),
        ('.get("k", 1)){{ + 1 => }}', "test_as_an_estimator"),
    ),
    *mutations(
        "advantages/pshw.py",
        "test_pshw.py",
        ("(mean {{- => +}} 1)", "test_numbers_from_the_formula"),
        ("2 * scored{{ - 1 => }}", "test_rewards_0_and_1_give_what_rewards_of_both_signs_give"),
        ('["low"] == {{0 => 1}}', "test_low_decides_which_rewards_the_trainer_accepts"),
    ),
    *mutations(
        "advantages/stcr.py",
        "test_stcr.py",
        (".{{clamp(min=0.0) => abs()}}", "test_numbers_of_the_released_code"),
        ("right{{ | (advantages >= 0) => }}", "test_only_negative_advantages_are_weighted"),
        ("(scored{{ + rounding_error(scored) => }} >= 1)", "test_signed_and_rounded_rewards_of_1_count_as_right"),
        ("{{.nan_to_num(0.0) => }}", "test_it_is_grpo_without_long_wrong_or_without_right_answers"),
    ),
    *mutations(
        "advantages/entropy_weighting.py",
        "test_grpo_s.py",
        ("certain = {{1 / entropies => entropies}}", "test_a_case_by_hand"),
        ("valid {{if with_zeros else right => }})\n    losses", "test_a_case_by_hand"),
        (
            "floor).transpose({{1, 2 => 0, 1}})",
            "test_gtpo.py::test_a_case_by_hand",
        ),
        ("{{~has_spread(values, mask) => values.isnan()}}", "test_apart_neither_weight_changes_the_result"),
        (
            'rows = ({{1 if scope == "batch" else => }} len(rewards)',
            "test_gtpo.py::test_a_batch_is_standardised_as_a_whole",
        ),
    ),
    *mutations(
        "advantages/maxrl.py",
        "test_maxrl.py",
        ("{{& (mean > 0) => }}", "test_groups_with_advantage_0"),
        ("(scored - mean) / {{mean => mean.sqrt()}}", "test_a_case_by_hand"),
    ),
    *mutations(
        "advantages/gdpo.py",
        "test_gdpo.py",
        ("{{& (weights != 0) => }}", "test_equal_rewards_give_exactly_0"),
        ("{{& spread.any() => }}", "test_equal_rewards_give_exactly_0"),
        ("(count / (count {{- 1 => }}))", "test_golden_numbers"),
    ),
    *mutations(
        "advantages/grpo_batch.py",
        "test_gdpo.py",
        ("group_std({{scored.flatten(), valid.flatten() => scored, valid}})", "test_cases_by_hand"),
    ),
    *mutations(
        "config/checks.py",
        "test_drop_in.py",
        ("kind in ({{GRPOConfig => type(args)}}, type(args))", "test_an_option_with_trls_default_asks_for_nothing"),
    ),
    *mutations(
        "advantages/astar_po.py",
        "test_advantages.py",
        ("best {{+ => -}} beta *", "test_optimal_value"),
        (
            "{{((scored - best) / beta) => (scored / beta).exp() * (-best / beta)}}.exp()",
            "test_optimal_value_never_overflows",
        ),
    ),
    *mutations(
        "metrics.py",
        "test_response_metrics.py",
        ("return mean_over_response({{- => }}log_probs", "test_surprisal_is_positive"),
        ("{{& ~values.isnan() => }}", "test_mean_over_response_by_hand"),
        ("seed * 1_000_003{{ + step => }}", "test_random_metric_depends_on_seed_and_step"),
        ("values.float(){{.masked_fill(~mask, 0.0) => }}", "test_golden.py::test_entropy_metric"),
        (
            '"wrong": lengths * (accuracy < {{least => torch.inf}})',
            "test_entropies_of_right_and_wrong_responses_by_hand",
        ),
        (
            "(entropies * count).sum() / {{count.sum() => (count > 0).sum()}}",
            "test_entropies_of_right_and_wrong_responses_by_hand",
        ),
    ),
    *mutations(
        "schedules.py",
        "test_golden.py",
        ("return {{1 - accuracy => accuracy}}", "test_accuracy_schedules"),
        ("high * {{(step + 1) => step}} / warmup_steps", "test_cosine_restarts"),
        ("{{% cycle_length / => /}} cycle_length", "test_cosine_restarts"),
    ),
    *mutations(
        "policy_losses/astar_po.py",
        "test_astar_po.py",
        ("(log_probs {{- => +}} ref_log_probs)", "test_loss_by_hand"),
        ("{{.masked_fill(~mask.bool(), 0.0) => }}", "test_loss_by_hand"),
        (".pow(2).{{mean => sum}}()", "test_loss_by_hand"),
    ),
    *mutations(
        "policy_losses/disco.py",
        "test_disco.py",
        ("{{- => }}objective +", "test_a_case_by_hand"),
        (".sum() / {{len(rewards) => mixed.sum()}}", "test_gradients_match_the_released_code"),
        ("divergence.detach() {{- => +}} delta", "test_gradients_match_the_released_code"),
        ("(divergence.detach() - delta)){{.clamp(min=0) => }}", "test_gradients_match_the_released_code"),
        (".logsumexp(dim=-1){{ - count.log() => }}", "test_a_case_by_hand"),
    ),
    *mutations(
        "policy_losses/dppo.py",
        "test_dppo.py",
        ("torch.where(advantages > 0, {{too_high, too_low => too_low, too_high}})", "test_a_case_by_hand"),
        (
            "now - before > {{high, before - now > low => low, before - now > high}}",
            "test_the_bound_of_each_direction",
        ),
        ("{{(now > before) & (moved > high) => (moved > high)}}", "test_a_case_by_hand"),
        ("clamp(max=math.log(cap)) {{- log_ratio => }})", "test_gradients_match_released_code"),
    ),
    *mutations(
        "policy_losses/up.py",
        "test_up.py",
        ("torch.where(advantages {{> => <}} 0", "test_a_case_by_hand"),
        ("inverse, {{1.0 => inverse}})", "test_without_positive_advantages_nothing_changes"),
    ),
    *mutations(
        "policy_losses/covariance_over_ranks.py",
        "test_policy_losses.py",
        (
            "(advantages - mean_advantage) * ({{log_probs - mean_log_prob => mean_log_prob - log_probs}})",
            "test_covariance",
        ),
        ("(policy_ratio < 1 - clip[0]) & (advantages {{< => >}} 0)", "test_clip_cov_skips_tokens_that_ppo_clips"),
        ("(covariance {{< bounds[1] => <= bounds[1] + 9}})", "test_masks_loss_and_gradient"),
    ),
    *mutations(
        "policy_losses/covariance.py",
        "test_policy_losses.py",
        ("advantages.masked_fill({{selected => ~selected}}[rows], 0.0)", "test_masks_loss_and_gradient"),
        ("log_probs - old_log_probs, 0.0){{.abs() => }}", "test_masks_loss_and_gradient"),
    ),
    *mutations(
        "selection.py",
        "test_selection.py",
        ("(further {{>= => >}} end)", "test_the_choice_matches_a_full_sort"),
        ("(sums / {{count.clamp(min=1) => (count + 1)}})", "test_policy_losses.py::test_covariance"),
        ("{{+ 0.0  # -0.0 becomes 0.0 => }}", "test_the_choice_matches_a_full_sort"),
        ("{{& ~values.isnan() => }}, flip", "test_the_choice_matches_a_full_sort"),
        ("% 2**63)){{ + step => }})", "test_draws_are_uniform_and_differ_by_seed_and_step"),
        ("{{below - 1 - order => order}}.flatten()", "test_ties_go_to_tokens_sampled_first"),
    ),
    *mutations(
        "policy_rewards/rent.py",
        "test_rent.py",
        ("certainty = {{- => }}entropies", "test_a_case_by_hand"),
        ("{{masked_fill(count == 0, empty) => nan_to_num()}}", "test_numbers_match_the_formula"),
    ),
    *mutations(
        "policy_rewards/em_rl.py",
        "test_em_rl.py",
        ("return {{- => }}_over_response(entropies", "test_cases_by_hand"),
        ("masked_fill({{~ => }}mask, 0.0)", "test_cases_by_hand"),
        ('return total if form {{== => !=}} "paper"', "test_numbers_match_the_formula"),
    ),
    *mutations(
        "policy_rewards/self_consistency.py",
        "test_self_consistency.py",
        ("{{.masked_fill(answer_ids == NO_ANSWER, 0.0) => }}", "test_self_consistency_by_hand"),
        ("same.float().{{mean => sum}}", "test_self_consistency_by_hand"),
    ),
    *mutations(
        "policy_rewards/majority_vote.py",
        "test_self_consistency.py",
        ("{{.masked_fill(answer_ids == NO_ANSWER, 0.0) => }}", "test_majority_vote_by_hand"),
        ("(votes {{== => !=}} most)", "test_majority_vote_by_hand"),
    ),
    *mutations(
        "policy_rewards/answers.py",
        "test_self_consistency.py",
        ("sum(dim=-1){{.masked_fill(group_answer_ids == NO_ANSWER, 0) => }}", "test_votes_by_hand"),
        ("most / {{answer_ids.numel() => len(given)}}", "test_agreement_by_hand"),
        ("in {{reversed(completion) => completion}} if", "test_the_text_that_the_model_wrote"),
        ("as_fraction(numbers[{{-1 => 0}}])", "test_boxed_or_number"),
    ),
    *mutations(
        "hook/policy_rewards.py",
        "test_answers.py",
        (
            "of_group = groups.{{repeat_interleave(group_size, dim=0) => repeat(group_size, 1)}}",
            "test_responses_are_rewarded_for_the_share_with_their_answer",
        ),
        ("if training:\n            self._answers_to_log {{+= => =}} (groups,)", "test_groups_under_dynamic_sampling"),
    ),
    *mutations(
        "config/policy_rewards.py",
        "test_policy_rewards.py",
        ("if {{reward.weight and reward => reward}}.method.name", "test_the_config_accepts_it_for_rewards_of_0_and_1"),
        (
            "reward.weight{{ and reward.method.name in POLICY_REWARDS => }}]",
            "test_the_config_accepts_it_for_rewards_of_0_and_1",
        ),
        (
            'in built_in{{ if {"entropies", "log_probs"} & {*reward.method.reads} => }}]',
            "test_the_config_accepts_it_for_rewards_of_0_and_1",
        ),
    ),
    *mutations(
        "guards/collapse.py",
        "test_answers.py",
        ("max({{MOST, => 0.0,}} TIMES_FIRST", "test_one_answer_to_most_prompts_gives_one_warning"),
        ("TIMES_FIRST {{* first => * 0}}", "test_one_answer_to_most_prompts_gives_one_warning"),
    ),
    *mutations(
        "token_advantages/entropy_shaped.py",
        "test_entropy_shaped.py",
        ("per_token {{+ => -}} bonus", "test_a_case_by_hand"),
        ("per_token.abs() {{/ => *}} kappa", "test_a_case_by_hand"),
        ("entropies{{.detach() => }}", "test_no_gradient_flows_through_the_entropies"),
    ),
    *mutations(
        "token_advantages/dmmpt.py",
        "test_dmmpt.py",
        (".exp() {{>= => <=}} tau", "test_numbers_match_the_formula"),
        ("total / mask.sum(dim=1).clamp(min=1) {{< => >=}} sigma", "test_a_case_by_hand"),
        ("rewards{{ + rounding_error(rewards) => }} >= 1", "test_a_response_is_right_from_a_reward_of_1"),
    ),
    *mutations(
        "token_advantages/zero_variance.py",
        "test_zero_variance.py",
        ("return {{has_spread => ~has_spread}}(scored", "test_a_case_by_hand"),
        ("is_scored({{scored => scored.nan_to_num()}}))", "test_unscored_responses_do_not_count"),
    ),
    *mutations(
        "token_advantages/clip_b.py",
        "test_clip_b.py",
        ("(advantages {{< => <=}} 0)", "test_a_case_by_hand"),
        ("(entropies {{+ => -}} log_probs)", "test_masks_match_the_released_code"),
        ("(deviation {{>= 1e-12 => >= 0}})", "test_equal_tokens_are_kept"),
    ),
    *mutations(
        "loss_terms/tea.py",
        "test_tea.py",
        ("return {{- => }}coefficients * entropies", "test_the_term_matches_the_released_code"),
        (".softmax(dim={{1 => 0}})", "test_the_term_matches_the_released_code"),
        ("(scale * shares){{.clamp(max=most) => }}", "test_a_case_by_hand"),
    ),
    *mutations(
        "loss_terms/dads.py",
        "test_dads.py",
        (
            "torch.where((advantages > 0) & {{(rate > 0) & (rate < 1) => (rate > 0)}}",
            "test_equal_groups_keep_the_whole_weight",
        ),
        ("torch.where({{(advantages > 0) & => (advantages < 0) &}} (rate", "test_a_case_by_hand"),
        ("beta * ({{weights - 1 => weights}})", "test_the_sum_with_trls_term_is_the_weighted_divergence"),
    ),
    *mutations(
        "loss_terms/ter.py",
        "test_ter.py",
        ("torch.sign({{before - target => target - before}})", "test_value_and_gradient_by_hand"),
        ("if measured {{else => is not None else}} entropy.detach()", "test_value_and_gradient_by_hand"),
    ),
    *mutations(
        "controllers/e3_temperature.py",
        "test_e3_temperature.py",
        ("math.log({{target / entropy => entropy / target}})", "test_a_case_by_hand"),
        (
            "self.updates {{<= => <}} self.init_steps:\n            self.initial",
            "test_numbers_match_the_released_code",
        ),
        ('self.updates = {{state["updates"] => 0}}', "test_resuming_at_every_update"),
    ),
    *mutations(
        "config/canon.py",
        "test_skywork_entropy.py",
        ('"entropy_coef_delta": {{1e-4 => 1e-3}}', "test_the_preset_has_the_values_of_the_released_script"),
    ),
    *mutations(
        "controllers/adaptive_clip.py",
        "test_adaptive_clip.py",
        ("(entropy {{< => >=}} self.target_entropy) -", "test_a_case_by_hand"),
        ("direction * self.step, {{0.0 => -self.most}})", "test_a_case_by_hand"),
        ("return self.start{{ + self.widening => }}", "test_a_case_by_hand"),
    ),
    *mutations(
        "tokens.py",
        "test_tokens.py",
        ("here = total{{ * ranks => }}", "test_mean_and_gradient_do_not_depend_on_the_ranks"),
        (
            "torch.stack([total.detach(), among.{{sum() => numel() * torch.ones_like(total)}}",
            "test_mean_and_gradient_do_not_depend_on_the_ranks",
        ),
    ),
    *mutations(
        "sampling/dynamic_sampling.py",
        "test_dynamic_sampling.py",
        ("(mean {{>= lower - => > lower +}} margin)", "test_a_band_of_a_named_reward_with_gaps"),
        ("(mean {{<= upper + => < upper -}} margin)", "test_a_band_of_a_named_reward_with_gaps"),
        ("nan_to_num(nan={{-1.0 => 0.5}})", "test_verdicts"),
    ),
    *mutations(
        "sampling/group_collector.py",
        "test_dynamic_sampling.py",
        ("min({{-(-missing * drawn // kept) => missing * drawn // kept}}, at_most)", "test_three_rounds_by_hand"),
        ("drawn {{+= => =}} len(spread)", "test_three_rounds_by_hand"),
        ("{{max(len(kept) - wanted, 0) => len(kept)}}", "test_three_rounds_by_hand"),
        ("len(rejected){{ - no_spread => }}", "test_three_rounds_by_hand"),
        ("{{< => <=}} len(kept) * size", "test_shrunken_batches.py::test_a_shrunken_batch"),
        ("group {{* size + response => + response * size}})", "test_groups_without_spread_are_replaced"),
        (
            "batch.drawn = {{torch.cat([sampled.rewards_per_func for sampled in rounds]) => batch.rewards_per_func}}",
            "test_replaced_groups_count_towards_constant_rewards",
        ),
    ),
    *mutations(
        "sampling/prompt_stream.py",
        "test_prompt_stream.py",
        ("self._place.drawn {{+= => =}} count", "test_resuming_from_anywhere"),
        ("+ {{passes + 1 => 1}} + blocks", "test_prompts_come_in_passes"),
        ("+ passes + {{1 + blocks => blocks}}", "test_the_order_differs_from_the_samplers"),
        ("place.blocks + 1, 0, {{following => None}}", "test_resuming_reads_a_block_once_and_skips_earlier_shards"),
        ("passes, position = passes{{ + 1 => }}, 0", "test_prompts_come_in_passes"),
    ),
    *mutations(
        "sampling/shared_prefix.py",
        "test_samplers.py",
        ("lengths = lengths + {{alive => 1}}", "test_nothing_is_added_to_a_response_after_its_end"),
        ("positions = positions{{ + 1 => }}", "test_greedy_sampling_matches_generate"),
        ("ended[rows] = lengths, {{~alive => alive}}", "test_sampling_with_transformers"),
    ),
    *mutations(
        "hook/shared_prefix.py",
        "test_shared_prefix.py",
        ("race[{{step.rows => : len(probs)}}]", "test_a_seed_gives_the_responses_of_generate"),
        ("(logits {{/ => *}} options.temperature)", "test_every_response_has_its_exact_probability"),
        (
            "log_probs{{.clamp(min=torch.finfo(log_probs.dtype).min) => }}",
            "test_metrics.py::test_a_token_with_probability_0_adds_nothing_to_the_entropy",
        ),
    ),
    *mutations(
        "sampling/chunks.py",
        "test_chunks.py",
        ("seed * 1_000_003{{ + chunk => }}", "test_each_prompt_is_sampled_once_in_order"),
        ('whole.rfind(b"\\n"){{ + 1 => }}', "test_a_killed_run_resumes_with_the_same_numbers"),
    ),
    *mutations(
        "sampling/optimal_values.py",
        "test_astar_po.py",
        ("(rewards.nan_to_num() {{!= => >}} 0)", "test_a_penalty_is_not_a_prompt_without_rewards"),
    ),
    *mutations(
        "evaluation/estimates.py",
        "test_estimates.py",
        ("(i - k).clip(min=0) / {{i => (i + 1)}}.clip(min=1)", "test_by_hand"),
        ("{{(1 - factors.prod(axis=1)) => factors.prod(axis=1)}}", "test_by_hand"),
        ("(votes == most){{ & (most > 0) => }}", "test_majority_is_the_mean_over_all_subsets"),
        ("({{(1 - confidence) / 2 => 1 - confidence}}) **", "test_shares_of_0_and_1_have_a_clopper_pearson_interval"),
    ),
    *mutations(
        "evaluation/boundary.py",
        "test_boundary.py",
        ('"gained": {{~old & new => old & ~new}}', "test_by_hand"),
        ('"lost": {{old & ~new => old}}', "test_by_hand"),
    ),
    *mutations(
        "evaluation/temperature.py",
        "test_suggest_temperature.py",
        ("nats += response.entropy{{ * len(response.ids) => }}", "test_by_hand"),
        ("bounds[tried[-1].entropy {{> => <}} target_entropy]", "test_by_hand"),
        (
            "return min(tried, key=lambda each: {{abs(each.entropy - target_entropy) => -each.temperature}})",
            "test_by_hand",
        ),
    ),
    *mutations(
        "evaluation/probing/resampling.py",
        "test_probe_statistics.py",
        ("* counts).sum(axis=1){{ - squares @ np.diag(products) => }}", "test_the_mean_over_pairs_is_free_of_noise"),
    ),
    *mutations(
        "evaluation/probing/estimator_statistics.py",
        "test_probe_statistics.py",
        ("{{surprise.sum() / sizes.sum() => 0}} * sizes", "test_directions_are_those_of_exact_gradients"),
        ("np.divide(total - given, count{{ - 1 => }},", "test_leave_one_out_by_hand"),
        ("(power - squared_norm){{ / prompts_per_step => }}", "test_noise_shrinks_with_the_prompts_per_step"),
        ("np.ones_like(sizes) if {{per_token => True}} else", "test_responses_of_equal_weight"),
    ),
    *mutations(
        "evaluation/probing/metric_statistics.py",
        "test_probe_statistics.py",
        ("(gaps**2{{ - noise => }})", "test_chance_explains_nothing"),
        ("sign_of(gap) * sign_of(ceiling_gap) {{< => >}} 0", "test_a_trap"),
        ("comb({{place => place + 1}}, count - 1)", "test_the_best_of_a_subset"),
    ),
    *mutations(
        "evaluation/probing/sketch.py",
        "test_probe_sketch.py",
        (
            "projected = projected{{ + left[-1] => }}",
            "test_a_large_sketch_has_the_inner_products_of_the_full_gradients",
        ),
        ("columns * (count / size) ** {{0.5 => 1}}", "test_a_projection_is_the_identity_on_average"),
    ),
    *mutations(
        "evaluation/probing/gradients.py",
        "test_probe_sketch.py",
        ("output.logits[:, :-1].float(){{ / temperature => }}", "test_entropies_are_those_of_the_distribution"),
    ),
    *mutations(
        "evaluation/probing/verdict.py",
        "test_probe.py",
        ("matters(each) and {{each.trap => False}} for each", "test_a_trap_speaks_against_inter_by_any_metric"),
        ("norm.ppf(1 - error / 2{{ / max(comparisons, 1) => }})", "test_signs_of_several_estimates_are_corrected"),
    ),
    *mutations(
        "evaluation/comparisons.py",
        "test_comparison_report.py",
        ("(2 * comparisons), pairs{{ - 1 => }})", "TestPairedDifference::test_by_hand"),
        ("std(ddof={{1 => 0}})", "TestPairedDifference::test_by_hand"),
        ("differences = {{ours - theirs => theirs - ours}}", "TestPairedDifference::test_by_hand"),
        (
            "np.ptp(differences) <= {{resolution => 0}} + ROUNDING * scale",
            "TestPairedDifference::test_differences_within_one_step_of_a_discrete_measure_give_no_interval",
        ),
    ),
    *mutations(
        "evaluation/responses.py",
        "test_evaluation_numbers.py",
        ("threshold {{- => +}} TOLERANCE", "test_threshold_of_a_right_response"),
        (
            "{{nats.sum() / self.lengths.sum => self.entropies.mean}}()",
            "test_numbers_by_hand",
        ),
        ("{{self.lengths => right}}.sum() / right.size", "test_numbers_by_hand"),
    ),
    *mutations(
        "evaluation/entropy_law.py",
        "test_entropy_law.py",
        ("return self.b {{- => +}} self.a\n", "test_an_exact_law_is_found"),
        ("np.stack([{{- => }}np.exp(h)", "test_fit_from_a_training_log"),
    ),
    *mutations(
        "hook/rollout.py",
        "test_shrunken_batches.py",
        (
            "in self._stages.choosing{{ if self.model.training else () => }}:",
            "test_shrunken_batches.py::test_evaluation_leaves_no_group_out",
        ),
        ("masked_fill({{~ => }}local.unsqueeze(1), 0)", "test_a_shrunken_batch"),
        ("self.accelerator.gather(mask.sum()).sum{{() => () * 2}}", "test_a_shrunken_batch"),
        (
            "{{(self._steps_not_restored + self._step) => self._step}} // self._generate_every",
            "test_resume.py::test_counting_continues_when_a_rollout_is_sampled_again",
        ),
        (
            "seed={{self.args.seed => 0}}, step=step",
            "test_hook.py::test_random_metric_is_a_function_of_seed_and_rollout",
        ),
        (
            "snapped({{phase.drawn => rewards_per_func}}[",
            "test_dynamic_sampling.py::test_schedules_read_the_accuracy_of_all_drawn_groups",
        ),
        (
            'output["advantages"].{{masked_fill(~mask, 0.0). => }}sum(dim=1)',
            "test_hook.py::test_token_level_advantages_are_averaged_over_the_models_tokens",
        ),
        (
            "values[name].float(){{.masked_fill(~mask, 0.0) => }} for name",
            "test_token_values.py::test_gtpo_leaves_out_the_tokens_of_tools",
        ),
        (
            "{{rollout.valid => torch.ones_like(rollout.valid)}}.flatten()",
            "test_astar_po.py::test_responses_without_a_reward_teach_nothing",
        ),
    ),
    *mutations(
        "hook/rollout_parts.py",
        "test_metrics.py",
        ("return written {{& => |}} padded(", "test_tool_tokens_count_in_no_metric"),
        (
            "{{written => trained}}.to(attention_mask.dtype)], dim=1)",
            "test_masked_truncated_completions_keep_their_length_and_entropy",
        ),
        (
            "for_trl = log_probs.{{masked_fill(~trained, 0.0) => clone()}}",
            "test_masked_truncated_completions_keep_their_length_and_entropy",
        ),
        (
            "self.drawn = self.batch.{{drawn => rewards_per_func}}",
            "test_dynamic_sampling.py::test_schedules_read_the_accuracy_of_all_drawn_groups",
        ),
    ),
    *mutations(
        "hook/rollout_parts.py",
        "test_scoring_pass.py",
        ("if self.shares_prompts{{ and not self.passes => }}:", "test_only_metrics_differ_and_by_rounding"),
    ),
    *mutations(
        "hook/scoring_pass.py",
        "test_scoring_pass.py",
        ("if {{2 => 1}} * length <", "test_the_values_are_those_of_trls_pass"),
        ("[{{order.argsort() => order}}] for values", "test_the_values_are_those_of_trls_pass"),
        ("batch_select_indices({{copies[rows] => copies}})", "test_the_values_are_those_of_trls_pass"),
        ("cache, mask = {{copy.deepcopy(prefixes) => prefixes}}", "test_the_values_are_those_of_trls_pass"),
    ),
    *mutations(
        "hook/generation_recorder.py",
        "test_metrics.py",
        (".float() {{/ => *}} self._temperature", "test_entropy_and_surprisal_agree_with_a_scoring_pass"),
        (
            "log_probs{{.clamp(min=torch.finfo(log_probs.dtype).min) => }}",
            "test_a_token_with_probability_0_adds_nothing_to_the_entropy",
        ),
        ("{{- => }}(finite.exp() * finite)", "test_entropy_and_surprisal_agree_with_a_scoring_pass"),
        ("[written].{{all => any}}())", "test_recorded_tokens_must_match_the_completions"),
        (
            "self._log_probs[{{: len(steps) - 1 => 1 : len(steps)}}]",
            "test_entropy_and_surprisal_agree_with_a_scoring_pass",
        ),
    ),
    *mutations(
        "hook/loss.py",
        "test_loss_stages.py",
        (
            'inputs["advantages"] = {{token_advantages(inputs) => inputs["advantages"]}}',
            "test_hook.py::test_advantages_on_padding_are_never_read",
        ),
        (
            "value = term{{ / self.current_gradient_accumulation_steps => }}",
            "test_a_scalar_term_is_divided_by_the_accumulation_steps",
        ),
        (
            "compute_whole_loss(stages.whole, phase.tokens){{ / accumulated => }}",
            "test_astar_po.py::test_the_loss_of_a_step",
        ),
        (
            "{{(loss - routing) * factor + routing => loss * factor}}",
            "test_shrunken_batches.py::test_a_shrunken_batch_leaves_the_routing_loss_as_it_is",
        ),
        ("return loss {{+ => -}} own if", "test_a_scalar_term_is_divided_by_the_accumulation_steps"),
    ),
    *mutations(
        "hook/normaliser.py",
        "test_seams.py",
        ("values{{.masked_fill(~mask, 0.0) => }}", "test_a_term_has_the_divisor_of_the_loss"),
        ("{{(len(kept) * trainer.max_completion_length) => kept.numel()}}", "test_a_term_has_the_divisor_of_the_loss"),
    ),
    *mutations(
        "hook/token_inputs.py",
        "test_hook.py",
        ("return advantages{{.masked_fill(~mask, 0.0) => }}", "test_canon_advantages_reach_the_loss"),
        (
            "rewards.{{repeat_interleave => repeat}}(rewards.shape[1], {{dim=0 => 1}})",
            "test_loss_stages.py::test_a_method_sees_the_rollout_and_the_pass_of_its_micro_batch",
        ),
    ),
    *mutations(
        "hook/token_stages.py",
        "test_loss_stages.py",
        ("masked_fill({{returned => ~returned}}.bool(), 0.0)", "test_shapes_weights_and_masks_apply_in_order"),
        ("tokens.advantages {{* => +}} returned if", "test_shapes_weights_and_masks_apply_in_order"),
        ("method(tokens), tokens){{.detach() => }}", "test_no_gradient_goes_through_a_token_advantage"),
    ),
    *mutations(
        "hook/stage_log.py",
        "test_loss_stages.py",
        ("sums[:, {{0 => 1}}] / sums[:, {{1 => 0}}]", "test_a_token_advantage_without_effect_changes_no_bit"),
    ),
    *mutations(
        "hook/measured.py",
        "test_measured.py",
        ("entries{{[before.get(name, 0) :] => }}", "test_logged_numbers_are_means_over_the_step"),
        ("self.totals{{.zero_() => }}", "test_every_token_has_the_same_weight_in_the_entropy"),
        (".{{masked_fill(~mask, 0.0). => }}sum(dtype=torch.float64)", "test_masked_tokens_never_count"),
    ),
    *mutations(
        "hook/shrunken_steps.py",
        "test_shrunken_batches.py",
        (
            "torch.where(share > 0, {{1 / share => share}}, 0.0)",
            "test_a_shrunken_batch_trains_like_a_full_one_of_that_size",
        ),
        ("places = places.{{any => all}}(dim=1)", "test_a_shrunken_batch_trains_like_a_full_one_of_that_size"),
        (
            "parameter.grad.mul_({{factor => 1.0}})",
            "test_responses_of_all_rollouts_of_an_optimiser_step_weigh_the_same",
        ),
        (
            "return factor * {{(before + loss) - before => loss}}",
            "test_responses_of_all_rollouts_of_an_optimiser_step_weigh_the_same",
        ),
    ),
    *mutations(
        "hook/logs.py",
        "test_hook.py",
        ("{{1 - spread => spread}}.sum() / scored.sum()", "test_log_and_completions_table"),
        ("            table{{.pop() => }}", "test_a_small_evaluation_has_its_own_completions_table"),
        ("advantages.{{abs(). => }}sum() / centred.abs().sum()", "test_log_and_completions_table"),
        (
            "self._metrics[mode][name]{{.pop() => }}",
            "test_reward_sums.py::test_a_function_without_weight_does_not_make_a_response_scored",
        ),
    ),
    *mutations(
        "hook/steering.py",
        "test_knobs.py",
        ("{{self._knobs[name].value = self._configured_values[name] => pass}}", "test_a_second_run_starts_over"),
        (
            '{{self._knobs[name].value = state["knobs"][name] => pass}}',
            "test_a_run_resumes_as_if_it_had_never_stopped",
        ),
        (
            'now{{, knob.value => }} = knob.value{{, self._configured_values["temperature"] => }}',
            "test_evaluation_uses_the_temperature_of_the_config",
        ),
        (
            'self._measured.numbers{{ | {"entropy": entropy} => }}',
            "test_e3_reads_the_entropy_of_the_rollout_at_its_temperature",
        ),
    ),
    *mutations(
        "hook/temperature.py",
        "test_knobs.py",
        ("{{cell.cell_contents = temperature => pass}}", "test_scores_are_those_of_a_trainer_made_at_the_temperature"),
        (
            "{{trainer.generation_config.temperature = temperature => pass}}",
            "test_e3_moves_the_temperature_between_rollouts",
        ),
    ),
    *mutations(
        "hook/counting.py",
        "test_hook.py",
        ("self.args.steps_per_generation{{ * self.num_iterations => }}", "test_rollouts_are_numbered"),
    ),
    *mutations(
        "hook/vllm_server.py",
        "test_vllm_server.py",
        ('valid = {{not url.endswith("/") => True}}', "test_an_address_that_the_client_cannot_use"),
        ('valid = {{"/" not in args.vllm_server_host => True}}', "test_an_address_that_the_client_cannot_use"),
        ("{{except HTTPError => except UnicodeError}} as error:", "test_something_else_answers"),
        ("if own and last_part(own) {{not in => in}} map", "test_another_model"),
        ("{{os.path.basename(os.path.abspath(name)) => name}}", "test_the_model_under_any_path_or_alias"),
        ('{{ids != answer["tokens"] => False}}', "test_another_vocabulary"),
        ("is_adapter = {{bool(name) and adapter.is_file() => False}}", "test_an_adapter_is_served_as_its_base_model"),
        ("def __enter__(self) -> None:\n        {{self._check() => pass}}", "test_a_server_that_restarts"),
        ("if {{kind is None => False}}:", "test_a_server_that_restarts"),
    ),
    *mutations(
        "tasks/noise.py",
        "test_noise.py",
        ("seen[response] += {{1 => 0}}", "test_equal_responses_to_a_prompt_are_judged_independently"),
        ('f"{{{seed} => 0}} {prompt!r} {list(ids)}"', "test_flips_depend_on_the_response_and_not_on_its_place"),
        (
            "float({{1 - value => value}} if flips else value)",
            "test_right_and_wrong_responses_are_flipped_with_the_same_probability",
        ),
        ("if value not in (0, 1, {{None => 0.5}})", "test_names_and_unscored_responses"),
    ),
]


def run_tests(tests: Sequence[str], package: Path, log: Path) -> int:
    """Run tests with the package at this path in a separate process and return pytest's exit code."""
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(tests, package, log))
    process.start()
    process.join(600)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode if process.exitcode is not None else -1


def in_child(tests: Sequence[str], package: Path, log: Path) -> None:
    import pytest

    sys.dont_write_bytecode = True  # bytecode could outlive its mutation
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
    """Import libraries that every child process would import for seconds, but not the package itself."""
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
    parser.add_argument("paths", nargs="*", help="parts of file paths; default: all files")
    parser.add_argument("--no-baseline", action="store_true", help="skip the run of the tests without mutations")
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
            tests = sorted({each.test for each in chosen})
            if run_tests(tests, package, log) != 0:
                print(log.read_text(), "a test fails without mutations", sep="\n", file=sys.stderr)
                return 2
        for each in chosen:
            with each.applied(package):
                code = run_tests([each.test], package, log)
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
