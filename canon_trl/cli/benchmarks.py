"""The benchmarks of an evaluation: their options, read from flags and a recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trl import ModelConfig

from canon_trl.cli.arguments import RecipeArguments, check, check_nothing_ignored, parse_unchecked
from canon_trl.cli.running import name_model
from canon_trl.cli.sampling import SamplingArguments
from canon_trl.policy_rewards.answers import EXTRACTORS, find_extractor
from canon_trl.tasks import TASKS

# Options for training data, which an evaluation does not read.
TRAINING_OPTIONS = (
    *("dataset_train_split", "dataset_streaming", "task_train_prompts", "ignore_bias_buffers", "reward_flip"),
)


@dataclass
class EvaluationArguments(SamplingArguments):
    """What to measure, and where to write it."""

    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for records and summaries."})
    pass_at_k: list[int] | None = field(
        default=None, metadata={"help": "The k of pass@k in addition to 1. Default: num_samples."}
    )
    majority_at_k: list[int] | None = field(
        default=None,
        metadata={"help": "The k of majority@k, which needs an answer extractor. Default: pass_at_k except 1."},
    )
    answer_extractor: str | None = field(
        default=None,
        metadata={
            "help": f"What finds the answer in a response: {', '.join(EXTRACTORS)} or an import path "
            "`package.module:function`; an embedded task has its own. Without one there is no majority vote."
        },
    )
    threshold: float = field(default=1.0, metadata={"help": "Minimum weighted reward of a right response."})
    confidence: float = field(default=0.95, metadata={"help": "Confidence level of the intervals over prompts."})
    save_responses: bool = field(default=False, metadata={"help": "Whether the records contain the responses' text."})
    update_card: bool = field(
        default=False,
        metadata={
            "help": "Whether to write the accuracies into the metadata of the model's card, local or on the Hub."
        },
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with a chat template that replaces the tokenizer's."}
    )
    benchmarks: list[dict] | None = field(
        default=None,
        metadata={"help": "In YAML: several benchmarks, each with a `name` and the options that it overrides."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pass_at_k", "majority_at_k"):
            if wrong := [k for k in getattr(self, name) or [] if not 1 <= k <= self.num_samples]:
                raise ValueError(f"{name} has {wrong}; each must lie between 1 and num_samples={self.num_samples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence!r} must lie in (0, 1)")

    @property
    def pass_ks(self) -> list[int]:
        return sorted({1, *(self.pass_at_k or [self.num_samples])})

    @property
    def majority_ks(self) -> list[int]:
        # A majority of one voter is avg@n.
        return sorted(set(self.majority_at_k or self.pass_ks[1:]))


# Options of the whole run, which cannot differ between benchmarks.
RUN_OPTIONS = (
    "output_dir",
    "benchmarks",
    "use_vllm",
    "vllm_kwargs",
    "update_card",
    "chat_template_path",
    *TRAINING_OPTIONS,
)


@dataclass
class Benchmark:
    """A named set of prompts with its options."""

    name: str
    recipe: RecipeArguments
    options: EvaluationArguments

    @property
    def answer_of(self) -> Callable[[str], str | None] | None:
        name = self.options.answer_extractor
        if name is None:
            return TASKS[self.recipe.task].answer_of if self.recipe.task else None
        return find_extractor(name)


def read_benchmarks(argv: list[str] | None) -> tuple[list[Benchmark], EvaluationArguments, ModelConfig]:
    """Return the benchmarks from flags and a recipe, the options that they share, and the model, all checked."""
    recipe, options, model = parse_unchecked(
        argv, EvaluationArguments, command="evaluate", embedded="arithmetic_evaluate"
    )
    for option in fields(RecipeArguments):
        value = getattr(recipe, option.name)
        if option.name in TRAINING_OPTIONS and value != option.default:
            raise ValueError(f"{option.name}={value!r} would be ignored: an evaluation does not train")
    if options.benchmarks is None:
        check_nothing_ignored(recipe)
        name = recipe.task or Path(recipe.held_out[0] or "").stem
        benchmarks = [Benchmark(name, recipe, options)]
    else:
        if recipe.task is not None or recipe.dataset_name is not None:
            raise ValueError(
                f"task={recipe.task!r} and dataset_name={recipe.dataset_name!r}: with benchmarks, each entry names "
                "its own data"
            )
        benchmarks = [read_entry(entry, recipe, options) for entry in options.benchmarks]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) != len(names):
        raise ValueError(f"benchmarks have the names {names}; the names must be different")
    for benchmark in benchmarks:
        check(benchmark.recipe, model)
        if benchmark.answer_of is None and benchmark.options.majority_at_k:
            raise ValueError(
                f"{benchmark.name}: majority_at_k={benchmark.options.majority_at_k} needs an answer_extractor"
            )
    if len({name_model(benchmark.recipe, model) for benchmark in benchmarks}) > 1:
        raise ValueError("model_name_or_path is missing, and the benchmarks' embedded tasks have different models")
    return benchmarks, options, model


def read_entry(entry: dict[str, Any], recipe: RecipeArguments, options: EvaluationArguments) -> Benchmark:
    """Return a benchmark, from an entry in `benchmarks` and the options that all of them share."""
    own = {
        kind: {each.name for each in fields(kind)} - {*RUN_OPTIONS} for kind in (RecipeArguments, EvaluationArguments)
    }
    known = sorted(option for options_of_kind in own.values() for option in options_of_kind)
    name = entry.get("name")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"benchmarks has an entry with name={name!r}; it must be the name of a folder")
    if unknown := sorted(entry.keys() - {"name", *known}):
        raise ValueError(f"benchmarks: {name} has the unknown options {unknown}; known: {known}")
    changes = {kind: {key: value for key, value in entry.items() if key in own[kind]} for kind in own}
    return Benchmark(
        name,
        replace(recipe, **changes[RecipeArguments]),
        replace(options, benchmarks=None, **changes[EvaluationArguments]),
    )
