"""Sampling: dynamic sampling of prompt groups, fresh prompts, and responses outside of training."""

from canon_trl.sampling.dynamic_sampling import DynamicSampling, group_verdicts
from canon_trl.sampling.prompt_stream import PromptStream

__all__ = ["DynamicSampling", "PromptStream", "group_verdicts"]
