"""Watching a trainer from outside: what its observers are shown and what it costs."""

import torch


def keep_rollouts(trainer):
    """Every rollout, as it is made."""
    rollouts = []
    trainer.on_rollout(lambda rollout, advantages: rollouts.append(rollout))
    return rollouts


def keep_tokens(trainer):
    """The tokens of every micro-batch that is trained on."""
    seen = []
    trainer.on_tokens(seen.append)
    return seen


def on_outputs(trainer, observe):
    """Show what TRL makes of every rollout, by name, before it is shuffled into micro-batches; it may be changed."""
    generate = trainer._generate_and_score_completions

    def show(inputs):
        output = generate(inputs)
        observe(output)
        return output

    trainer._generate_and_score_completions = show


def keep_outputs(trainer):
    """What TRL makes of every rollout, before it is shuffled into micro-batches."""
    outputs = []
    on_outputs(trainer, outputs.append)
    return outputs


def count_forwards(trainer):
    """Forward passes of the causal language model that are not decoding steps, split by whether gradients flow."""
    calls = {"with_grad": 0, "without_grad": 0}

    def count(module, args, kwargs, output):
        if kwargs.get("fused_lm_head"):
            calls["with_grad" if torch.is_grad_enabled() else "without_grad"] += 1

    trainer.model.register_forward_hook(count, with_kwargs=True)
    return calls


def scored_entropy(trainer, output):
    """Mean response entropy and surprisal by an independent pass over full logits."""
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
