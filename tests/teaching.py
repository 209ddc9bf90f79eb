"""Prompts, half of which have groups with spread, and responses that depend only on prompt and place in the group."""

from datasets import Dataset

MIXED = Dataset.from_dict({"prompt": ["2+3*4=", "3+3*4=", "5-1*2=", "4-1*2="]})  # the first and the last have spread


def teaches(prompt):
    """Whether the rewards of the prompt's group differ: true for half of the prompts."""
    return int(prompt[0]) % 2 == 0


def graded(prompts, completions, log_extra=None, **kwargs):
    log_extra("shown", [f"{prompt}|{completion}" for prompt, completion in zip(prompts, completions, strict=True)])
    return [
        float(index % 2) if teaches(prompt) else 0.1
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def fixed_responses(prompts, trainer):
    """A `rollout_func` whose responses depend only on the prompt and the place in its group."""
    tokenizer = trainer.processing_class
    texts = [f"{prompt[0]}{'7' * (index % 4)}#{index % 4}" for index, prompt in enumerate(prompts)]
    completion_ids = tokenizer(texts)["input_ids"]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }
