"""Which groups are trained on: stages between generation and training."""

from canon_trl.sampling.dynamic_sampling import DynamicSampling, PromptStream, group_verdicts

__all__ = ["DynamicSampling", "PromptStream", "group_verdicts"]
