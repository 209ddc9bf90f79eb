"""What is published with a model: its card, citations, and uploads."""
