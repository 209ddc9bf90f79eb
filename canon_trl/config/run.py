"""Options that every run has."""

from dataclasses import dataclass
from typing import Annotated, Literal

from trl import GRPOConfig

from canon_trl.config.checks import check_own_options
from canon_trl.config.help_texts import with_help
from canon_trl.config.sampler import check_generation_kwargs, move_generation_kwargs

# Prefixes of fields that do not decide what a run learns: logging, saving, uploading, evaluation, hardware, other ways
# to compute the same numbers, and secrets such as a token.
DOES_NOT_AFFECT_LEARNING = (
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
    "rollout_sampler",
)


@with_help
@dataclass
class RunConfig(GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with the options that all trainers of this package share.

    The config checks the bounds of this package's options. TRL and transformers check theirs; in addition, the config
    rejects values that would silently disable or falsify what this package adds.

    Args:
        restore_callback_states_from_checkpoint: Whether a resumed run restores the state of callbacks, such as the
            patience of `EarlyStoppingCallback`; transformers' own default is `False`.
        reward_time_limit: Seconds that a call of a reward function may take; after that, training stops and names the
            function. Default: no limit.
        resume_with_changes: Whether to resume from a checkpoint of a run with other options, with a warning that names
            them, instead of raising an error.
        rollout_sampler: How transformers samples responses. `"generate"` calls its `generate`. `"shared_prefix"`
            processes each prompt once for all its responses and drops finished responses from the batch, which is
            faster; the responses have the same distribution. `"auto"` does so if model and options allow it.
    """

    restore_callback_states_from_checkpoint: bool = True
    reward_time_limit: Annotated[float, "(0, inf)"] | None = None
    resume_with_changes: bool = False
    rollout_sampler: Literal["auto", "shared_prefix", "generate"] = "auto"

    # TRL 1.9 does not parse generation_kwargs given as JSON.
    _VALID_DICT_FIELDS = sorted({*GRPOConfig._VALID_DICT_FIELDS, "generation_kwargs"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_own_options(self)
        move_generation_kwargs(self)
        check_generation_kwargs(self)


def decides_what_is_learnt(name: str) -> bool:
    """Whether a field decides what a run learns, so that checkpoints and model cards record it."""
    return not name.startswith(DOES_NOT_AFFECT_LEARNING)
