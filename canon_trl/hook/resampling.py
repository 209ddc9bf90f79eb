"""Dynamic sampling in TRL: responses that are sampled and scored, and handed back later."""

from typing import Any

from canon_trl.hook.rollout_parts import GENERATED, RewardsAreKnown, RolloutParts
from canon_trl.hook.scoring import Scoring
from canon_trl.sampling.group_collector import SampledBatch, SampledResponse


class Resampling(Scoring):
    """Samples rounds of responses for the group collector, and replays those that it kept."""

    def _sample_batch(self, inputs: list[dict[str, Any]]) -> SampledBatch:
        """Generate and score a response to each row, and go no further."""
        self._check_rows(inputs)
        self._making = RolloutParts(sampling_only=True)
        try:
            super()._generate_and_score_completions(inputs)
        except RewardsAreKnown:
            parts = self._making
        finally:
            self._making = None
        columns = {name: list(values) for name, values in self._pending_extra_logs.items()}
        self._pending_extra_logs.clear()
        return SampledBatch(
            [
                SampledResponse(
                    row,
                    {name: None if part is None else part[index] for name, part in parts.generated.items()},
                    parts.recorded[index] if parts.recorded else {},
                    {name: values[index] for name, values in columns.items()},
                )
                for index, row in enumerate(inputs)
            ],
            parts.rewards_per_func,
        )

    def _replay(self, responses: list[SampledResponse]) -> tuple:
        """What `_generate` would return for responses that are there already."""

        def part(name: str) -> Any:
            values = [response.generated[name] for response in responses]
            return None if all(value is None for value in values) else values

        parts = {name: part(name) for name in GENERATED if name != "extra_fields"} | {"extra_fields": {}}
        self._making.completion_ids, self._making.tool_mask = parts["completion_ids"], parts["tool_mask"]
        self._making.recorded = [response.recorded for response in responses]
        return tuple((parts[name] or []) if name == "tool_images" else parts[name] for name in GENERATED)
