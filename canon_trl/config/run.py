"""Options of a run, whatever its method."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from canon_trl.config.sampler import check_generation_kwargs

# Fields, by how their names begin, that do not decide what is learnt: what is shown, kept, sent and evaluated, on
# which machine, and how the same numbers are computed there, or what is nobody's business, such as a token.
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


@dataclass
class RunConfig(GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with the options that every trainer of this package has.

    Args:
        reward_time_limit (`float`, *optional*):
            Seconds that a call of a reward function may take; beyond them training stops and names the function.
            Default: no limit.
        resume_with_changes (`bool`, *optional*, defaults to `False`):
            Whether a checkpoint that was made with other options is resumed, with a warning that names them, instead
            of being refused.
        restore_callback_states_from_checkpoint (`bool`, *optional*, defaults to `True`):
            Whether callbacks that keep a state in checkpoints, such as the patience of `EarlyStoppingCallback`, get it
            back on resume; transformers' own default is `False`.
    """

    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Give callbacks that keep a state in checkpoints it back on resume."}
    )

    reward_time_limit: float | None = field(
        default=None, metadata={"help": "Seconds that a call of a reward function may take. Default: no limit."}
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume a checkpoint that was made with other options, which are named."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_generation_kwargs(self)


def decides_what_is_learnt(name: str) -> bool:
    """Whether a field of the config does, so that a checkpoint and a model card name it."""
    return not name.startswith(NOT_OF_THE_RUN)
