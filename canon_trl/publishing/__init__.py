"""Publishing a model: its card, citations and uploads."""
