"""What came out of a run: its numbers as files, its curves as a picture, and what they predict."""

from canon_trl.evaluation.entropy_law import EntropyLaw, fit_entropy_law, save_entropy_law
from canon_trl.evaluation.training_curves import save_history

__all__ = ["EntropyLaw", "fit_entropy_law", "save_entropy_law", "save_history"]
