"""Everything that touches private members of TRL: one concern a file, put together in `trainer.py`.

The hook wraps them, so that everything TRL does to a rollout still happens, and copies none. What it relies on in TRL
1.16, checked by `tests/test_seams.py`:

    _generate(prompts)                          eight parts, see `GENERATED`; lists by response of this rank, or None
    _calculate_rewards(inputs, prompts, ...)    (N, F), gathered over the ranks, rank-major
    _get_per_token_logps_and_entropies(...)     (log_probs, entropies, aux_loss) of the completion positions
    _generate_and_score_completions(inputs)     dict with "advantages", "completion_ids", ...; rows of this rank
    _compute_loss(model, inputs)                scores the micro-batch first, then reads `inputs["advantages"]`
    epsilon_low, epsilon_high                   the bounds of its ratio clipping
    aux_loss_enabled, router_aux_loss_coef      what it adds for a mixture of experts
    _metrics, _logs                             what `log` averages and tabulates
    _pending_extra_logs                         columns that reward functions put into the table, before it is written
    _step, _buffered_inputs                     the position in, and the rest of, the rollout in flight
    _pending_metrics, _current_train_step_time, _last_world_entropy, _entropy_window_stats, _last_loaded_step
                                                what else outlives a run
    reward_funcs, reward_func_names             functions are called in place, in this order
    _save_checkpoint, _load_optimizer_and_scheduler, _get_train_sampler, _get_grad_norm, _get_output_dir
    _tr_loss, _total_loss_scalar, _globalstep_last_logged, _load_rng_state
                                                the loss since it was last logged; what is called right before training
    _init_training_state(max_steps, ...)        (epoch, batches of it) to begin at; a stream's epoch holds all steps
    _name, _tag_names, _paper                   what the model card says
    push_in_progress, _push_from_checkpoint, _finish_current_push
"""
