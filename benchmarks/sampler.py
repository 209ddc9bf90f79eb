"""Compare the sampler behind evaluation and value estimation with transformers' `generate`, in rollouts per second.

    python benchmarks/sampler.py

Both sample the same number of responses to the same prompts from the same model, in turn. First at their natural
lengths, as in use: a response that has ended costs the sampler nothing, while `generate` continues to the end of the
longest. Then at equal lengths, with the end token masked out of the logits: the sampler saves only the repeated
reading of each prompt.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from step_time import TASK, finished, format_ratio, paired, ratio
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from canon_trl.sampling.samplers import TransformersSampler

TOKENS = 40
LENGTHS = {"natural lengths": False, "equal lengths": True}


def seconds(run: Callable[[], object]) -> float:
    start = finished()
    run()
    return finished() - start


def never_ends(model: PreTrainedModel, args: Any, output: Any) -> Any:
    output.logits[..., model.generation_config.eos_token_id] = -torch.inf
    return output


def measure(*, prompts: int, samples: int, pairs: int, until: float, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """The sampler's rollouts per second as multiples of those of `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path, padding_side="left")
    texts = TASK.dataset("test", prompts)["prompt"][:]
    repeated = tokenizer([text for text in texts for _ in range(samples)], return_tensors="pt", padding=True).to(
        device
    )
    options = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=True,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    results = {}
    for place, (name, endless) in enumerate(LENGTHS.items()):
        now = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(TASK.model_path).to(device).eval()
        if endless:
            model.register_forward_hook(never_ends)
        sample = TransformersSampler(model, tokenizer, num_samples=samples, max_new_tokens=TOKENS)
        ours = partial(seconds, partial(sample, texts, 0))
        theirs = partial(seconds, partial(model.generate, **repeated, generation_config=options))
        share = now + (until - now) / (len(LENGTHS) - place)
        taken = [(their, our) for our, their in paired(ours, theirs, pairs, share)]
        results[name] = ratio(taken) | {"seconds_of_generate_and_sampler": taken}
        print(f"rollouts per second, sampler / generate, {name}: {format_ratio(results[name])}", flush=True)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(prompts=64, samples=8, pairs=15, until=time.perf_counter() + 60)
