"""Which groups are trained on: stages between generation and training."""

from canon_trl.sampling.dynamic_sampling import DynamicSampling, group_verdicts
from canon_trl.sampling.prompt_stream import PromptStream

__all__ = ["DynamicSampling", "PromptStream", "group_verdicts"]
