"""What came out of a run: its numbers as files and its curves as a picture."""

from canon_trl.evaluation.training_curves import save_history

__all__ = ["save_history"]
