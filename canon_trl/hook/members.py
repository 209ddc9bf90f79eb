"""The undocumented members of `GRPOTrainer` that the hook relies on; `tests/hook/test_seams.py` checks each one.

The hook wraps these members and copies none, so that everything TRL does to a rollout still happens. When a release of
TRL moves one, the test fails and names it.
"""

from dataclasses import dataclass

from canon_trl.trl_release import RELEASE

SCORED = ("model", "input_ids", "attention_mask", "logits_to_keep")


@dataclass(frozen=True)
class Member:
    """A member of TRL's trainer, or of transformers' trainer, its base class.

    Args:
        name: name of the member.
        why: what it contains, returns or does.
        parameters: first parameters of a method; `None` for an attribute, which a trainer has after training.
    """

    name: str
    why: str
    parameters: tuple[str, ...] | None = None


MEMBERS = (
    # The rollout
    Member("_generate", "eight parts, see `GENERATED`; lists by response of this rank, or None", ("prompts",)),
    Member(
        "_calculate_rewards",
        "(N, F), gathered over the ranks, rank-major",
        ("inputs", "prompts", "completions", "completion_ids_list"),
    ),
    Member(
        "_get_per_token_logps_and_entropies",
        "(log_probs, entropies, aux_loss) of the completion positions",
        ("model", "args") if RELEASE == (1, 14) else (*SCORED, "batch_size", "compute_entropy"),
    ),
    Member(
        "_generate_and_score_completions",
        "dict with `advantages`, `completion_ids` and more; the rows of this rank",
        ("inputs",),
    ),
    Member("_prepare_inputs", "makes a rollout and deals it to micro-batches", ("generation_batch",)),
    Member("_step", "the position in the rollout in flight, in micro-batches"),
    Member("_buffered_inputs", "the micro-batches of the rollout in flight"),
    Member("reward_funcs", "TRL calls the entries of this list, in this order"),
    Member("reward_func_names", "their names in the log"),
    # The loss
    Member("_compute_loss", "scores the micro-batch first, then reads its `advantages`", ("model", "inputs")),
    Member("epsilon_low", "how far a ratio may fall below 1"),
    Member("epsilon_high", "how far a ratio may rise above 1"),
    Member("current_gradient_accumulation_steps", "micro-batches of the optimiser step, by which losses are divided"),
    Member("aux_loss_enabled", "whether a mixture of experts adds a loss"),
    Member("_entropy_bonus_enabled", "whether TRL's entropy bonus is on; a controller can turn it on"),
    Member("_get_grad_norm", "called between clipping and the optimiser's step", ("model", "grad_norm")),
    # What controllers steer
    Member("temperature", "the temperature that recorders of entropies and users' samplers read"),
    Member("generation_config", "the temperature at which transformers samples"),
    Member("generation_kwargs", "the same temperature, which overrides the model's own"),
    Member("entropy_coef", "the weight of TRL's entropy bonus"),
    # Logs
    Member("_metrics", "what `log` averages"),
    Member("_logs", "what `log` tabulates"),
    Member("_pending_extra_logs", "columns that reward functions put into the table, before it is written"),
    Member("_pending_metrics", "numbers that reward functions log, before they are averaged"),
    # What TRL keeps after a run
    Member("_last_world_entropy", "the entropy that TRL's adaptive entropy bonus reads"),
    Member("_last_loaded_step", "the optimiser step whose weights vLLM has"),
    # Resuming
    Member("_save_checkpoint", "writes everything in a checkpoint except the rollout in flight", ("model", "trial")),
    Member("_load_optimizer_and_scheduler", "called once on resume, before the first rollout", ("checkpoint",)),
    Member("_load_rng_state", "called once on resume, right before the first training step", ("checkpoint",)),
    Member(
        "_init_training_state",
        "the epoch and the batch to begin at; a stream's epoch has all steps",
        ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    ),
    Member("_get_train_sampler", "draws one order of the prompts per epoch", ("dataset",)),
    Member("_get_output_dir", "where checkpoints are written", ("trial",)),
    Member("_tr_loss", "the loss since it was last logged"),
    Member("_total_loss_scalar", "the loss of the run, until it was last logged"),
    Member("_globalstep_last_logged", "the step after which the loss is summed"),
    # The model card and the Hub
    Member("_name", "the method, in the model card"),
    Member("_tag_names", "the tags of the model card"),
    Member("_paper", "what the model card cites"),
    Member("_push_from_checkpoint", "uploads a checkpoint in the background", ("checkpoint_folder",)),
    Member("_finish_current_push", "waits for the upload in the background", ()),
)
