"""Choose the responses of a rollout: those that TRL samples, or groups that dynamic sampling has kept."""

from collections.abc import Mapping
from typing import Any

from canon_trl.hook.generation_recorder import NoRecorder
from canon_trl.hook.policy_rewards import PolicyRewards
from canon_trl.hook.rollout_parts import ReplayPhase, RolloutPhase, SamplingPhase, StopAfterRewards
from canon_trl.sampling import DynamicSampling
from canon_trl.sampling.group_collector import GroupCollector, SampledBatch, SampledResponse


class SampledBatches:
    """A rollout consists of the responses that TRL samples for its rows.

    Attributes:
        statistics: numbers of the last rollout to log, by name.
        options: options of dynamic sampling; empty without it.
    """

    statistics: Mapping[str, float] = {}
    options: Mapping[str, DynamicSampling] = {}

    def begin(self, trainer: "Resampling", rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], RolloutPhase]:
        """Return the rows of a rollout, and the phase that makes it. Every rank must call this."""
        trainer._check_rows(rows)
        return rows, trainer._rollout_phase(trainer._recorder())

    def restart(self) -> None:
        """Return to the state before the first rollout."""

    def release(self) -> None:
        """Release resources after training."""

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        pass


class CollectedBatches(SampledBatches):
    """A rollout consists of the groups that a [`GroupCollector`] has kept from several rounds."""

    def __init__(self, collector: GroupCollector) -> None:
        self.collector = collector
        self.options = {"dynamic_sampling": collector.options}

    @property
    def statistics(self) -> Mapping[str, float]:  # type: ignore[override]
        return self.collector.statistics

    def begin(self, trainer: "Resampling", rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], RolloutPhase]:
        batch = self.collector.collect(rows, trainer._sample_batch, reward_weights=trainer.reward_weights)
        columns = {column for response in batch.responses for column in response.columns}
        for column in columns:  # some columns may be missing in a round or on a rank
            trainer._pending_extra_logs[column].extend(r.columns.get(column) for r in batch.responses)
        return [response.row for response in batch.responses], trainer._replay_phase(batch)

    def restart(self) -> None:
        self.collector.prompts.restart()

    def release(self) -> None:
        self.collector.prompts.release()

    def state_dict(self) -> dict[str, Any] | None:
        return self.collector.prompts.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.collector.prompts.load_state_dict(state)


AS_SAMPLED = SampledBatches()


class Resampling(PolicyRewards):
    """Begins rollouts, and samples rounds for dynamic sampling."""

    _batch_source = AS_SAMPLED  # in training

    def _begin_rollout(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], RolloutPhase]:
        return (self._batch_source if self.model.training else AS_SAMPLED).begin(self, rows)

    def _rollout_phase(self, recorder: NoRecorder) -> RolloutPhase:
        return RolloutPhase(self.model, recorder, scores=bool(self._scored_inputs))

    def _replay_phase(self, batch: SampledBatch) -> RolloutPhase:
        return ReplayPhase(self.model, batch, scores=bool(self._scored_inputs))

    def _sample_batch(self, inputs: list[dict[str, Any]]) -> SampledBatch:
        """Generate and reward a response to each row, without scoring it."""
        self._check_rows(inputs)
        phase = SamplingPhase(self.model, self._recorder())
        try:
            with self._in_phase(phase):
                super()._generate_and_score_completions(inputs)
        except StopAfterRewards:
            pass
        columns = {name: list(values) for name, values in self._pending_extra_logs.items()}
        self._pending_extra_logs.clear()
        return SampledBatch(
            [
                SampledResponse(
                    row,
                    {name: None if part is None else part[index] for name, part in phase.generated.items()},
                    phase.recorded[index],
                    {name: values[index] for name, values in columns.items()},
                )
                for index, row in enumerate(inputs)
            ],
            phase.rewards_per_func,
        )
