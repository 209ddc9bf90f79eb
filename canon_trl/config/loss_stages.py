"""The stages between the advantages and the gradient (T, L, L+) as they are chosen, and what does not go together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trl import GRPOConfig

from canon_trl.method import Method
from canon_trl.policy_losses.kinds import OnTRL, Whole
from canon_trl.token_advantages.kinds import TokenAdvantage

ORDER = ("shape", "weight", "mask")

# Losses whose divisor is that of a loss term per token as well: there a term has its place next to TRL's own KL.
WITH_TERMS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


@dataclass(frozen=True)
class LossStages:
    """The methods that act in the loss of a micro-batch, in training.

    Args:
        token_advantages: change the advantages, one after the other.
        policy_loss: how the loss differs from TRL's; default not at all.
        loss_terms: are added to the loss.
    """

    token_advantages: tuple[Method, ...] = ()
    policy_loss: OnTRL | Whole | None = None
    loss_terms: tuple[Method, ...] = ()

    def __iter__(self) -> Iterator[Method]:
        yield from self.token_advantages
        if self.policy_loss is not None:
            yield self.policy_loss
        yield from self.loss_terms

    def own(self) -> "LossStages":
        """The same methods with options that nobody else holds, so that controllers may change them."""
        kept = None if self.policy_loss is None else replace(self.policy_loss, options=dict(self.policy_loss.options))
        owned = [
            tuple(replace(method, options=dict(method.options)) for method in methods)
            for methods in (self.token_advantages, self.loss_terms)
        ]
        return LossStages(owned[0], kept, owned[1])

    @property
    def whole(self) -> Whole | None:
        """The loss in place of TRL's, if there is one."""
        return self.policy_loss if isinstance(self.policy_loss, Whole) else None

    def read(self, *names: str) -> bool:
        """Whether a method reads one of these, or the tokens as a whole, which have them all."""
        return any({"tokens", *names} & {*method.reads} for method in self)


def kind_of(method: Method) -> str:
    """What a token advantage returns."""
    return method.kind if isinstance(method, TokenAdvantage) else "shape"


def check_loss_stages(stages: LossStages, args: GRPOConfig) -> None:
    """Refuse what would be ignored, or would have another meaning, before a model is loaded.

    Raises:
        ValueError: names the method and the option.
    """
    kinds = [kind_of(method) for method in stages.token_advantages]
    if kinds != sorted(kinds, key=ORDER.index):
        listed = [f"{m.name} (a {kind})" for m, kind in zip(stages.token_advantages, kinds, strict=True)]
        raise ValueError(
            f"token_advantage lists {', '.join(listed)}; shapes come first, then weights, then masks, since the later "
            "ones act on what the earlier ones return"
        )
    for method in stages:
        if "ref_log_probs" in method.reads and not args.beta:
            raise ValueError(
                f"{method.name} reads ref_log_probs, the log-probabilities under the reference model, which "
                f"beta={args.beta!r} does without; set beta above 0"
            )
    if stages.loss_terms and args.loss_type not in WITH_TERMS and stages.whole is None:
        raise ValueError(
            f"loss_term={stages.loss_terms[0].name!r} does not go with loss_type={args.loss_type!r}, whose tokens are "
            f"weighed by more than the advantage; it must be one of {WITH_TERMS}"
        )
    if stages.whole is not None and stages.token_advantages and not {"advantages", "tokens"} & {*stages.whole.reads}:
        raise ValueError(
            f"token_advantage={stages.token_advantages[0].name!r} would be ignored: "
            f"policy_loss={stages.whole.name!r} reads no advantages"
        )
