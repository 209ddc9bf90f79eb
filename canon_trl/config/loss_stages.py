"""The chosen token advantages, policy loss and loss terms, and checks of their combination."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from trl import GRPOConfig

from canon_trl.config.checks import check_can_leave_out, check_ignored
from canon_trl.method import Method, RewardRange, find
from canon_trl.policy_losses import POLICY_LOSSES, OnTRL, Whole
from canon_trl.policy_losses import STAGE as POLICY_LOSS
from canon_trl.token_advantages import TokenAdvantage
from canon_trl.tokens import Tokens
from canon_trl.trl_release import FUSED_HEAD, LUSPO_HAS_DIVISOR

ORDER = ("shape", "weight", "mask")

# Losses that clip the ratio of every token as PPO does. They differ only in their divisor.
PPO_LOSSES = ("grpo", "bnpo", "dapo", "dr_grpo")

# Options of TRL's loss, which a loss that replaces it does not read.
CLIP = ("epsilon", "epsilon_high")
LOSS_OPTIONS = (
    "delta",
    "importance_sampling_level",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
)

# Losses whose divisor also suits a loss term per token, which is added where TRL adds its KL term.
WITH_TERMS = ("grpo", "bnpo", "dr_grpo", "dapo", *(("luspo",) if LUSPO_HAS_DIVISOR else ()))


@dataclass(frozen=True)
class LossStages:
    """The methods that act in a micro-batch's loss, in training.

    Args:
        token_advantages: methods that change the advantages, one after another.
        policy_loss: a change of TRL's loss, or a loss that replaces it; default neither.
        loss_terms: methods whose result is added to the loss.
    """

    token_advantages: tuple[Method, ...] = ()
    policy_loss: OnTRL | Whole | None = None
    loss_terms: tuple[Method, ...] = ()

    def __iter__(self) -> Iterator[Method]:
        yield from self.token_advantages
        if self.policy_loss is not None:
            yield self.policy_loss
        yield from self.loss_terms

    def copy(self) -> "LossStages":
        """Copy the methods with their options, so that controllers may change the options."""
        chosen = (
            None if self.policy_loss is None else replace(self.policy_loss, options=dict(self.policy_loss.options))
        )
        token_advantages, loss_terms = (
            tuple(replace(method, options=dict(method.options)) for method in methods)
            for methods in (self.token_advantages, self.loss_terms)
        )
        return LossStages(token_advantages, chosen, loss_terms)

    @property
    def step_wide(self) -> bool:
        """Whether a method selects among the tokens of the whole optimiser step."""
        return any(method.all_options.get("scope") == "batch" for method in self)

    @property
    def evaluation(self) -> "LossStages":
        """The methods that act in evaluation: none but a whole loss that is declared for it."""
        return LossStages(policy_loss=self.whole) if self.whole is not None and self.whole.evaluates else LossStages()

    @property
    def advantage_changes(self) -> tuple[Method, ...]:
        """All methods that change the advantages, in order."""
        chosen = self.policy_loss
        last = (chosen,) if isinstance(chosen, OnTRL) and chosen.part == "token_advantage" else ()
        return (*(method for method in self.token_advantages if kind_of(method) != "responses"), *last)

    @property
    def choosing(self) -> tuple[Method, ...]:
        """All methods that choose the responses to train on."""
        return tuple(method for method in self.token_advantages if kind_of(method) == "responses")

    @property
    def added(self) -> tuple[Method, ...]:
        """All methods whose result is added to the loss."""
        chosen = self.policy_loss
        first = (chosen,) if isinstance(chosen, OnTRL) and chosen.part == "loss_term" else ()
        return (*first, *self.loss_terms)

    def prefix(self, method: Method) -> str:
        """Return the prefix of a method's names in the log."""
        if method is self.policy_loss:
            return "policy_loss"
        return f"{'token_advantage' if method in self.token_advantages else 'loss_term'}/{method.name}"

    @property
    def whole(self) -> Whole | None:
        """The loss that replaces TRL's, or `None`."""
        return self.policy_loss if isinstance(self.policy_loss, Whole) else None

    @property
    def ignores_advantages(self) -> bool:
        """Whether a whole loss does not read the advantages."""
        reads = () if self.whole is None else self.whole.reads
        return self.whole is not None and not {"advantages", "response_advantages", "tokens"} & {*reads}

    @property
    def differentiates_entropies(self) -> bool:
        """Whether a loss term or a whole loss may have a gradient through the entropies."""
        losses = (*self.added, *(() if self.whole is None else (self.whole,)))
        return any({"tokens", "entropies"} & {*method.reads} for method in losses)

    def read(self, *names: str) -> bool:
        """Whether a method reads one of these attributes, or the tokens as a whole."""
        return any({"tokens", *names} & {*method.reads} for method in self)


def kind_of(method: Method) -> str:
    """Return what a token advantage returns: a shape, a weight, a mask or a choice of responses."""
    return method.kind if isinstance(method, TokenAdvantage) else "shape"


def reward_ranges(estimator: Method, stages: LossStages) -> dict[str, RewardRange]:
    """Return the rewards that methods are defined for, by `field='method'`, of those that are not defined for all."""
    methods = [("advantage_estimator", estimator), *((stages.prefix(m).partition("/")[0], m) for m in stages)]
    return {f"{field}={m.name!r}": m.reward_range for field, m in methods if m.reward_range is not None}


def find_policy_loss(spec: Any, options: dict[str, Any] | None = None) -> OnTRL | Whole | None:
    """Find the policy loss that a config field names, if any. A user's function is a whole loss.

    Raises:
        TypeError: the object has `select` and `advantages`, the form of a policy loss in 0.1.
        ValueError: see [`~canon_trl.method.find`].
    """
    if spec is None:
        return None
    if hasattr(spec, "select") and hasattr(spec, "advantages"):
        raise TypeError(
            f"policy_loss={spec!r} has select and advantages, as in 0.1; it must be a function of the tokens, such as "
            "canon_trl.policy_losses.OnTRL('name', f, part='token_advantage')"
        )
    method = find(POLICY_LOSS, spec, options or None)
    if not isinstance(method, OnTRL | Whole):
        method = Whole(**{each.name: getattr(method, each.name) for each in fields(method)})
    try:
        if method.name in POLICY_LOSSES:
            method(Tokens.example())  # checks combinations of options before a model is loaded
    except ValueError as error:
        raise ValueError(f"policy_loss {method.name!r}: {error}") from None
    return method


def check_policy_loss(policy_loss: OnTRL, args: GRPOConfig) -> None:
    """Reject options that would change the meaning of a method defined on PPO's loss per token."""
    needed: dict[str, tuple[Any, ...]] = {"loss_type": PPO_LOSSES, "importance_sampling_level": ("token",)}
    needed |= {"delta": (None,), "off_policy_mask_threshold": (None,)}
    for name, allowed in needed.items():
        if (value := getattr(args, name)) not in allowed:
            raise ValueError(
                f"{name}={value!r} does not work with policy_loss={policy_loss.name!r}, which is defined on PPO's "
                f"loss per token; it must be one of {allowed}"
            )
    if args.top_entropy_quantile < 1:
        raise ValueError(
            f"top_entropy_quantile={args.top_entropy_quantile!r} does not work with policy_loss={policy_loss.name!r}: "
            "it removes from the loss most of the tokens that the method selects; it must be 1.0"
        )
    if not policy_loss.clips:
        check_ignored(args, CLIP, f"policy_loss={policy_loss.name!r} clips no ratio")
    elif not policy_loss.clips_high:
        check_ignored(args, ["epsilon_high"], f"policy_loss={policy_loss.name!r} clips no ratio above 1")
    per_step, per_rollout = args.gradient_accumulation_steps, args.steps_per_generation
    if policy_loss.all_options.get("scope") == "batch" and per_rollout % per_step:
        raise ValueError(
            f"policy_loss={policy_loss.name!r} has scope='batch', the batch of one optimiser step, which must come "
            f"from one rollout; make steps_per_generation={per_rollout} a multiple of "
            f"gradient_accumulation_steps={per_step}"
        )


def check_loss_stages(stages: LossStages, args: GRPOConfig) -> None:
    """Reject combinations that would be ignored or would change a method's meaning.

    Raises:
        ValueError: names the method and the option.
    """
    if args.use_liger_kernel and not FUSED_HEAD:
        raise ValueError(
            "use_liger_kernel=True is not supported with this release of TRL: the kernel computes the whole loss, "
            "and canon_trl cannot act in it; set it to False, or install TRL 1.15 or later"
        )
    if isinstance(stages.policy_loss, OnTRL):
        check_policy_loss(stages.policy_loss, args)
    for method in stages.choosing:
        check_can_leave_out(args, f"choose no token_advantage={method.name!r}")
    shaping = [method for method in stages.token_advantages if method not in stages.choosing]
    kinds = [kind_of(method) for method in shaping]
    if kinds != sorted(kinds, key=ORDER.index):
        listed = [f"{m.name} (a {kind})" for m, kind in zip(shaping, kinds, strict=True)]
        raise ValueError(
            f"token_advantage lists {', '.join(listed)}; shapes must come first, then weights, then masks, since each "
            "acts on the result of those before it"
        )
    for method in stages:
        if "ref_log_probs" in method.reads and not args.beta:
            raise ValueError(
                f"{method.name} reads ref_log_probs, but beta={args.beta!r} loads no reference model; set beta above 0"
            )
    for method in stages.loss_terms:
        if "beta" in method.reads and stages.whole is not None:
            raise ValueError(
                f"loss_term={method.name!r} changes TRL's KL term, which policy_loss={stages.whole.name!r} replaces "
                "together with the rest of TRL's loss"
            )
        if "beta" in method.reads and args.use_bias_correction_kl:
            raise ValueError(
                f"use_bias_correction_kl=True does not work with loss_term={method.name!r}, which changes TRL's plain "
                "KL term; set it to False"
            )
    if stages.loss_terms and args.loss_type not in WITH_TERMS and stages.whole is None:
        raise ValueError(
            f"loss_term={stages.loss_terms[0].name!r} does not work with loss_type={args.loss_type!r}, which weights "
            f"tokens by more than the advantage; it must be one of {WITH_TERMS}"
        )
    if stages.whole is None:
        return
    if stages.token_advantages and not {"advantages", "tokens"} & {*stages.whole.reads}:
        raise ValueError(
            f"token_advantage={stages.token_advantages[0].name!r} would be ignored: "
            f"policy_loss={stages.whole.name!r} reads no advantages"
        )
    if stages.ignores_advantages:
        estimator = [option.name for option in fields(args) if option.name == "advantage_estimator"]
        check_ignored(args, estimator, f"policy_loss={stages.whole.name!r} reads no advantages")
    unread = LOSS_OPTIONS if stages.read("clip") else (*CLIP, *LOSS_OPTIONS)
    check_ignored(args, unread, f"policy_loss={stages.whole.name!r} replaces TRL's loss")
    if not stages.read("ref_log_probs"):
        check_ignored(args, ["beta"], f"policy_loss={stages.whole.name!r} reads no ref_log_probs")
    if stages.whole.whole_groups and args.per_device_train_batch_size % args.num_generations:
        raise ValueError(
            f"policy_loss={stages.whole.name!r} needs all responses to a prompt in one micro-batch, and "
            f"per_device_train_batch_size={args.per_device_train_batch_size} cannot hold whole groups of "
            f"num_generations={args.num_generations}; make it a multiple of num_generations"
        )
