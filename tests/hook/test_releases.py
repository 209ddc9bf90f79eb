"""Which releases of TRL are supported, and what the older ones would leave without effect."""

import importlib.metadata
import runpy

import pytest
from toy import config, make_trainer

from canon_trl import trl_release
from canon_trl.config import loss_stages


@pytest.mark.parametrize("version", ["0.29.1", "1.8.0", "1.17.0", "2.0.0.dev0"])
def test_an_unsupported_release_is_named_on_import(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    with pytest.raises(ImportError, match=rf"supports TRL 1\.9 to 1\.16, but TRL {version} is installed"):
        runpy.run_path(trl_release.__file__)


def test_a_loss_term_trains_through_the_entropies(tmp_path):
    """Releases before 1.15 give the entropies a gradient for their own bonus only."""
    seen = []

    def total_entropy(entropies, mask):
        seen.append(entropies.requires_grad)
        return (entropies * mask).sum()

    make_trainer(tmp_path, trainer_options={"loss_term": total_entropy}, max_steps=1).train()
    assert seen and all(seen)


def test_a_kernel_that_computes_the_whole_loss_is_rejected(monkeypatch):
    monkeypatch.setattr(loss_stages, "FUSED_HEAD", False)
    with pytest.raises(ValueError, match="use_liger_kernel=True"):
        config(use_liger_kernel=True)
