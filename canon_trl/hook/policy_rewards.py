"""Policy rewards in TRL: reward functions that also read token values of the policy, or the answers of a group."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from trl import GRPOConfig

from canon_trl.hook.data_checks import named_datasets
from canon_trl.hook.rollout_parts import RolloutPhase
from canon_trl.hook.scoring import Scoring
from canon_trl.method import Method, check_readable, name_of
from canon_trl.metrics import METRICS, TOKEN_INPUTS, ResponseMetric
from canon_trl.policy_rewards import STAGE, PolicyReward
from canon_trl.policy_rewards.answers import (
    ANSWER_INPUTS,
    NO_ANSWER,
    AnswerExtractor,
    agreement,
    extract_ids,
    find_extractor,
)

# What TRL passes to reward functions in addition to the columns of the dataset.
FROM_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# The metric that shows a collapse, by the values that a policy reward reads. It is then computed for every rollout.
COLLAPSE_METRICS = {"entropies": "entropy", "log_probs": "surprisal"}


class PolicyRewards(Scoring):
    """Adds policy rewards to TRL's reward functions, so that TRL calls, gathers, logs and tabulates them too."""

    reward_weights: Tensor
    _policy_rewards: Sequence[PolicyReward] = ()
    _answer_extractor: AnswerExtractor | None = None  # if a policy reward reads answers
    _answers_to_log: tuple[Tensor, ...] = ()  # of all responses sampled for the rollout in training, `(P, G)` each

    def _add_policy_rewards(self, rewards: Sequence[PolicyReward]) -> None:
        if self.reward_funcs[:1] == [score_nothing]:
            for each in (self.reward_funcs, self.reward_func_names, self.reward_processing_classes):
                del each[0]
            self.reward_weights = self.reward_weights[1:]
        self._policy_rewards = rewards
        self.reward_funcs += [partial(self._policy_reward, reward.method) for reward in rewards]
        self.reward_func_names += [reward.name for reward in rewards]
        self.reward_processing_classes += [None] * len(rewards)
        self._weigh_policy_rewards()

    def _weigh_policy_rewards(self) -> None:
        """Append the weights of the policy rewards; a callback may have changed the others."""
        if self._policy_rewards:
            given = len(self.reward_funcs) - len(self._policy_rewards)
            own = torch.tensor([reward.weight for reward in self._policy_rewards])
            self.reward_weights = torch.cat([self.reward_weights[:given], own])

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids: list) -> Tensor:
        if self._answer_extractor is not None:
            self._gather_answers(self._answer_extractor, completions)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids)

    def _gather_answers(self, extract: AnswerExtractor, completions: list) -> None:
        """Extract this rank's answers, and gather those of all ranks. Every rank must call this."""
        phase, training = cast(RolloutPhase, self._phase), self.model.training
        try:
            ids = extract_ids(extract, completions)
        except Exception as error:  # raised in the policy reward, where it reaches all ranks
            error.add_note("in the answer_extractor")
            phase.answer_error, ids = error, [NO_ANSWER] * len(completions)
        local = torch.tensor(ids, device=self.accelerator.device)
        group_size = self.num_generations if training else self.num_generations_eval
        groups = self.accelerator.gather(local).view(-1, group_size)
        first = self.accelerator.process_index * len(ids)
        of_group = groups.repeat_interleave(group_size, dim=0)[first : first + len(ids)]
        phase.answers = dict(zip(ANSWER_INPUTS, (local, of_group), strict=True))
        if training:
            self._answers_to_log += (groups,)

    def _take_agreement(self) -> dict[str, Tensor]:
        """Return how much the answers sampled for the rollout agree, 0-d by name; empty if none are read."""
        answers, self._answers_to_log = self._answers_to_log, ()
        return agreement(torch.cat(answers)) if answers else {}

    def _options_of_reward(self, reward: PolicyReward) -> dict[str, Any]:
        """Return the options of a policy reward for the model card."""
        options = {"weight": reward.weight} | reward.method.all_options
        if self._answer_extractor is not None and reads_answers(reward):
            options["answer_extractor"] = name_of(self._answer_extractor)
        return options

    def _policy_reward(self, method: Method, **inputs: Any) -> Tensor:
        """Return the rewards of this rank's responses, as a reward function that TRL calls."""
        phase = cast(RolloutPhase, self._phase)
        if phase.answer_error is not None:
            raise phase.answer_error
        mask = phase.model_mask(self._width(phase), self.accelerator.device)
        readable = inputs | self._token_values(phase) | {"mask": mask} | phase.answers
        check_readable(method, readable, field=STAGE.field)
        return method(SimpleNamespace(**readable))


def score_nothing(completions: list, **kwargs: Any) -> list[None]:
    """Score nothing: a placeholder for runs with policy rewards alone, since TRL requires a reward function."""
    return [None] * len(completions)


def token_inputs_of(rewards: Sequence[PolicyReward]) -> list[str]:
    """Return which of `entropies` and `log_probs` the policy rewards read."""
    read = {name for reward in rewards for name in reward.method.reads}
    return [name for name in COLLAPSE_METRICS if name in read]


def reads_answers(reward: PolicyReward) -> bool:
    return any(name in ANSWER_INPUTS for name in reward.method.reads)


def choose_extractor(spec: AnswerExtractor | str | None, rewards: Sequence[PolicyReward]) -> AnswerExtractor | None:
    """Return the function that extracts answers, `None` if no policy reward reads them.

    Raises:
        ValueError: the extractor is unknown, or it would be ignored.
    """
    if any(reads_answers(reward) for reward in rewards):
        return find_extractor(spec or "boxed_or_number")
    if spec is not None:
        raise ValueError(
            f"answer_extractor={spec!r} would be ignored: no policy reward reads {' or '.join(ANSWER_INPUTS)}"
        )
    return None


def collapse_metrics(rewards: Sequence[PolicyReward]) -> dict[str, ResponseMetric]:
    """Return the response metrics that show a collapse under these rewards, by name."""
    return {COLLAPSE_METRICS[name]: METRICS[COLLAPSE_METRICS[name]] for name in token_inputs_of(rewards)}


def check_policy_rewards(
    rewards: Sequence[PolicyReward], train_dataset: Any, eval_dataset: Any, trl_kwargs: Mapping[str, Any]
) -> None:
    """Reject a policy reward that reads what neither the trainer nor a column supplies.

    The columns of a stream, a rollout_func or an environment are not known yet.
    """
    if trl_kwargs.get("rollout_func") or trl_kwargs.get("environment_factory"):
        return
    for _, dataset in named_datasets(train_dataset, eval_dataset):
        if dataset.column_names is not None:
            for reward in rewards:
                available = {*TOKEN_INPUTS, *ANSWER_INPUTS, *FROM_TRL, *dataset.column_names}
                check_readable(reward.method, available, field=STAGE.field)


def check_recorded(rewards: Sequence[PolicyReward], *, records: bool) -> None:
    """Reject dynamic sampling by rewards that are computed too late.

    Raises:
        ValueError: they read values that are not recorded during generation.
    """
    if not records and (read := token_inputs_of(rewards)):
        raise ValueError(
            f"dynamic_sampling=True with a policy_reward that reads {read}: it chooses groups by their rewards before "
            "the scoring pass, so generation must record these values, which is impossible with vLLM, "
            "tools, environments, a rollout_func or entropy_source='forward'"
        )


def check_without_reward_funcs(args: GRPOConfig, *, needs_accuracy: bool) -> None:
    """Reject options that need a reward function in addition to policy rewards."""
    if args.reward_weights:
        raise ValueError(
            f"reward_weights={args.reward_weights!r} would be ignored: there are no reward functions, and the weight "
            "of a policy reward is one of its options"
        )
    if needs_accuracy:
        raise ValueError(
            "the mu schedule reads the accuracy, which no reward function measures; add one, with weight 0 if it "
            "should change nothing else"
        )
