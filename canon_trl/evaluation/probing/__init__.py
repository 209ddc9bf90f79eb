"""The probe: what one sample of a model's responses says before training. See docs/probe.md."""
