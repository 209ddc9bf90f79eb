"""Observe a training run: rollouts, tokens, TRL's outputs, the completions table and forward passes."""

from fractions import Fraction
from pathlib import Path

import pandas
import torch


def keep_rollouts(trainer):
    """Return a list to which the trainer adds every rollout."""
    rollouts = []
    trainer.on_rollout(lambda rollout, advantages: rollouts.append(rollout))
    return rollouts


def keep_tokens(trainer):
    """Return a list to which the trainer adds the tokens of every training micro-batch."""
    seen = []
    trainer.on_tokens(seen.append)
    return seen


def keep_local_advantages(trainer):
    """Return a list to which the trainer adds this rank's advantages of every rollout, in sampling order.

    The optimiser step must take the whole rollout as one micro-batch.
    """
    advantages, rollouts = [], keep_rollouts(trainer)

    def keep(tokens):
        if len(advantages) < len(rollouts):  # the first update on this rollout
            advantages.append(tokens.response_advantages[tokens.response.argsort()])

    trainer.on_tokens(keep)
    return advantages


def on_outputs(trainer, observe):
    """Call `observe` with TRL's output for every rollout, a dict of tensors in sampling order that it may change.

    This wraps a private method because TRL has no public access to the token ids and the old log-probabilities of a
    rollout. Observers of the trainer come first: `on_rollout` for rewards and advantages, `on_tokens` for what the
    loss sees.
    """
    generate = trainer._generate_and_score_completions

    def generate_and_observe(inputs):
        output = generate(inputs)
        observe(output)
        return output

    trainer._generate_and_score_completions = generate_and_observe


def keep_outputs(trainer):
    """Return a list to which the trainer adds TRL's output for every rollout; see [`on_outputs`]."""
    outputs = []
    on_outputs(trainer, outputs.append)
    return outputs


def on_generate(trainer, observe):
    """Call `observe` with the generation config whenever transformers is about to sample."""
    generate = trainer.model.generate

    def observe_and_generate(*args, generation_config, **kwargs):
        observe(generation_config)
        return generate(*args, generation_config=generation_config, **kwargs)

    trainer.model.generate = observe_and_generate


def completions_table(trainer, step=None):
    """Read the completions table that `log_completions=True` writes at a step, by default the last one.

    Every rank must call this; the main process writes the file.
    """
    trainer.accelerator.wait_for_everyone()
    name = f"completions_{trainer.state.global_step if step is None else step:05d}.parquet"
    return pandas.read_parquet(Path(trainer.args.output_dir, "completions", name)).to_dict("list")


def cache_of(inputs):
    """Return the cache that a forward pass continues, under either name that releases of transformers give it."""
    return inputs.get("past_key_values", inputs.get("cache"))


def count_forwards(trainer):
    """Count the model's forward passes with and without gradient, except decoding steps.

    The parts of a rollout that continue the caches of its prompts count as one pass together.
    """
    calls = {"with_grad": 0, "without_grad": 0}
    responses = trainer.args.generation_batch_size // trainer.accelerator.num_processes

    def count(module, args, kwargs, output):
        if kwargs.get("fused_lm_head") or kwargs.get("use_cache") is False:  # the latter before TRL 1.15
            part = cache_of(kwargs) is not None
            passes = Fraction(len(kwargs["input_ids"]), responses) if part else 1
            calls["with_grad" if torch.is_grad_enabled() else "without_grad"] += passes

    trainer.model.register_forward_hook(count, with_kwargs=True)
    return calls


def scored_entropy(trainer, output):
    """Compute the mean entropy and surprisal of each response by a separate pass over the full logits."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    width = output["completion_ids"].shape[1]
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    trainer.model.train()
    log_probs = (logits.float() / trainer.temperature).log_softmax(-1)
    mask = output["completion_mask"]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    surprisal = -log_probs.gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return (entropy * mask).sum(1) / mask.sum(1), (surprisal * mask).sum(1) / mask.sum(1)
