"""Prompts of which half teach something, and responses that depend on the prompt and the place alone."""

from datasets import Dataset

MIXED = Dataset.from_dict({"prompt": ["2+3*4=", "3+3*4=", "5-1*2=", "4-1*2="]})  # the first and the last one teach


def teaches(prompt):
    """Half of the prompts have something to teach."""
    return int(prompt[0]) % 2 == 0


def graded(prompts, completions, log_extra=None, **kwargs):
    log_extra("shown", [f"{prompt}|{completion}" for prompt, completion in zip(prompts, completions, strict=True)])
    return [
        float(index % 2) if teaches(prompt) else 0.1
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def fixed_responses(prompts, trainer):
    """Responses that depend on the prompt and the place within the group alone."""
    tokenizer = trainer.processing_class
    texts = [f"{prompt[0]}{'7' * (index % 4)}#{index % 4}" for index, prompt in enumerate(prompts)]
    completion_ids = tokenizer(texts)["input_ids"]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }
