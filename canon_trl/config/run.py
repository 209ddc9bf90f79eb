"""Options of a run, whatever its method."""

from dataclasses import dataclass
from typing import Annotated

from trl import GRPOConfig

from canon_trl.config.checks import check_own_options
from canon_trl.config.help_texts import with_help
from canon_trl.config.sampler import check_generation_kwargs

# Fields, by how their names begin, that do not decide what a run learns: what it logs, saves, uploads and evaluates,
# on which machine, how it computes the same numbers, and secrets such as a token.
NOT_OF_THE_RUN = (
    "output_dir",
    "run_name",
    "project",
    "trackio",
    "log_",
    "logging_",
    "report_to",
    "disable_tqdm",
    "save_",
    "enable_jit_checkpoint",
    "restore_callback_states",
    "resume_",
    "load_best_model",
    "metric_for_best",
    "greater_is_better",
    "push_to_hub",
    "hub_",
    "do_",
    "eval_",
    "prediction_loss_only",
    "per_device_eval",
    "num_generations_eval",
    "dataloader_",
    "include_",
    "skip_memory_metrics",
    "debug",
    "use_cpu",
    "local_rank",
    "ddp_",
    "deepspeed",
    "fsdp",
    "accelerator_config",
    "parallelism_config",
    "ds3_",
    "gradient_checkpointing",
    "activation_",
    "torch_",
    "tf32",
    "pad_to_multiple_of",
    "model_init_kwargs",
    "num_completions_to_print",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable",
    "vllm_server",
    "vllm_group",
    "vllm_gpu",
    "vllm_max",
    "vllm_tensor",
    "reward_time_limit",
)


@with_help
@dataclass
class RunConfig(GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with the options that every trainer of this package has.

    A value of an option of this package that is out of its bounds is refused. What TRL and transformers take is theirs
    to check, unless it would silently disable or falsify what this package adds.

    Args:
        restore_callback_states_from_checkpoint: Whether callbacks that keep a state in checkpoints, such as the
            patience of `EarlyStoppingCallback`, get it back when a run resumes; transformers' own default is `False`.
        reward_time_limit: Seconds that a call of a reward function may take; beyond them training stops and names the
            function. Default: no limit.
        resume_with_changes: Whether to resume a checkpoint that was made with other options, with a warning that
            names them, instead of refusing it.
    """

    restore_callback_states_from_checkpoint: bool = True
    reward_time_limit: Annotated[float, "(0, inf)"] | None = None
    resume_with_changes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_own_options(self)
        check_generation_kwargs(self)


def decides_what_is_learnt(name: str) -> bool:
    """Whether a field decides what a run learns, so that checkpoints and model cards record it."""
    return not name.startswith(NOT_OF_THE_RUN)
