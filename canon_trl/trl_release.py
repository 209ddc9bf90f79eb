"""The installed release of TRL: whether it is supported, and how it differs from the others.

Importing this file raises ImportError for a release that is not supported.
"""

from importlib.metadata import version
from inspect import iscoroutinefunction

OLDEST, NEWEST = (1, 9), (1, 16)

RELEASE = tuple(int(part) for part in version("trl").split(".")[:2])

if not OLDEST <= RELEASE <= NEWEST:
    supported = " to ".join(".".join(map(str, release)) for release in (OLDEST, NEWEST))
    raise ImportError(f"canon_trl supports TRL {supported}, but TRL {version('trl')} is installed")

# Since this release the head of the language model computes log-probabilities and entropies itself. Earlier ones
# compute them from logits, with a gradient for the entropies only if TRL's own entropy bonus is on.
FUSED_HEAD = RELEASE >= (1, 15)

# Since this release TRL keeps the options of gradient checkpointing when it switches checkpointing off to generate.
KEEPS_CHECKPOINTING_OPTIONS = RELEASE >= (1, 16)

# 1.9 divides this loss by a number of positions that includes padding, which no loss term per token could share.
LUSPO_HAS_DIVISOR = RELEASE >= (1, 10)

# How TRL recognises asynchronous reward functions.
if RELEASE >= (1, 14):
    from trl.trainer.utils import is_async_callable as is_async_callable
else:
    is_async_callable = iscoroutinefunction
