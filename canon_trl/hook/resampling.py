"""Which responses a rollout is made of: those that TRL samples, or groups that dynamic sampling has kept."""

from collections.abc import Mapping
from typing import Any

from canon_trl.hook.generation_recorder import NoRecorder
from canon_trl.hook.policy_rewards import PolicyRewards
from canon_trl.hook.rollout_parts import Making, Replaying, Sampling, StopAfterRewards
from canon_trl.sampling import DynamicSampling
from canon_trl.sampling.group_collector import GroupCollector, SampledBatch, SampledResponse


class AsSampled:
    """A rollout is made of whatever TRL samples, for the rows that it was given.

    Attributes:
        statistics: numbers to log of the last rollout, by name.
        options: of dynamic sampling, by name; none.
    """

    statistics: Mapping[str, float] = {}
    options: Mapping[str, DynamicSampling] = {}

    def begin(self, trainer: "Resampling", rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Making]:
        """The rows of a rollout, and the phase in which it is made. Every rank must call."""
        trainer._check_rows(rows)
        return rows, trainer._making(trainer._recorder())

    def restart(self) -> None:
        """Be as before the first rollout."""

    def release(self) -> None:
        """Close what is open, once training has ended."""

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        pass


class Collected(AsSampled):
    """A rollout is made of the groups that a [`GroupCollector`] has kept of several rounds."""

    def __init__(self, collector: GroupCollector) -> None:
        self.collector = collector
        self.options = {"dynamic_sampling": collector.options}

    @property
    def statistics(self) -> Mapping[str, float]:  # type: ignore[override]
        return self.collector.statistics

    def begin(self, trainer: "Resampling", rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Making]:
        batch = self.collector.collect(rows, trainer._sample_batch, reward_weights=trainer.reward_weights)
        columns = {column for response in batch.responses for column in response.columns}
        for column in columns:  # a round or a rank may have none of it
            trainer._pending_extra_logs[column].extend(r.columns.get(column) for r in batch.responses)
        return [response.row for response in batch.responses], trainer._replaying(batch)

    def restart(self) -> None:
        self.collector.prompts.restart()

    def release(self) -> None:
        self.collector.prompts.release()

    def state_dict(self) -> dict[str, Any] | None:
        return self.collector.prompts.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.collector.prompts.load_state_dict(state)


AS_SAMPLED = AsSampled()


class Resampling(PolicyRewards):
    """Begins rollouts, and samples rounds of responses for dynamic sampling."""

    _sampled = AS_SAMPLED  # in training

    def _begin_rollout(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Making]:
        return (self._sampled if self.model.training else AS_SAMPLED).begin(self, rows)

    def _making(self, recorder: NoRecorder) -> Making:
        return Making(self.model, recorder, scores=bool(self._scored_inputs))

    def _replaying(self, batch: SampledBatch) -> Making:
        return Replaying(self.model, batch, scores=bool(self._scored_inputs))

    def _sample_batch(self, inputs: list[dict[str, Any]]) -> SampledBatch:
        """Generate and reward a response to each row, and go no further."""
        self._check_rows(inputs)
        parts = Sampling(self.model, self._recorder())
        try:
            with self._during(parts):
                super()._generate_and_score_completions(inputs)
        except StopAfterRewards:
            pass
        columns = {name: list(values) for name, values in self._pending_extra_logs.items()}
        self._pending_extra_logs.clear()
        return SampledBatch(
            [
                SampledResponse(
                    row,
                    {name: None if part is None else part[index] for name, part in parts.generated.items()},
                    parts.recorded[index],
                    {name: values[index] for name, values in columns.items()},
                )
                for index, row in enumerate(inputs)
            ],
            parts.rewards_per_func,
        )
