"""vLLM's server mode against a real `trl vllm-serve`, that is `vllm serve`, on the CPU.

These calls of TRL's client are made for real: `/health`, `/v1/models`, `/server_info`, `/get_world_size`,
`/init_weight_transfer_engine`, `/start_weight_update`, `/update_weights`, `/finish_weight_update`,
`/reset_prefix_cache`, `/v1/completions`. `/tokenize` is a call of ours. `VLLMClient.init_communicator` is the first
call that fails without a GPU: it makes a group of NCCL, which later broadcasts the weights. On both sides the tests
replace the group and the broadcast by a file. The server also keeps plain weights, without oneDNN: see
`vllm_server.py`.
"""

import json
import shutil

import pytest
import requests
import torch
from observe import keep_outputs, keep_rollouts
from toy import TASK, logged, make_trainer
from urllib3.util.retry import Retry
from vllm_server import Server, transferred_through_a_file

from canon_trl import requires_metrics
from canon_trl.advantages import dr_grpo_advantage
from canon_trl.hook.vllm_server import check_server

BEFORE_A_MODEL_IS_LOADED = ["GET /health", "GET /v1/models", "POST /tokenize"]
BY_TRL = ["GET /health", "GET /v1/models", "GET /server_info", "GET /get_world_size"]
SYNC = ["POST /start_weight_update", "POST /update_weights", "POST /finish_weight_update", "POST /reset_prefix_cache"]
ROLLOUT = ["GET /server_info", *SYNC, "POST /v1/completions", "GET /server_info"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(TASK.model_path, tmp_path_factory.mktemp("server"))
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
def without_nccl(server):
    with transferred_through_a_file(server):
        yield


def make(server, folder, trainer_options=None, **options):
    given = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "vllm_server_timeout": 1.0}
    return make_trainer(folder, trainer_options=trainer_options, **given | options)


@requires_metrics("surprisal")
def reading_estimator(rollout):
    return dr_grpo_advantage(rollout.rewards)


def differences(output):
    mask = output["completion_mask"].bool()
    return (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask].abs()


def test_the_first_call_that_needs_a_gpu(server, tmp_path):
    before = len(server.calls())
    with pytest.raises(NotImplementedError, match="NCCL weight-transfer engine, which needs a CUDA device, got 'cpu'"):
        make(server, tmp_path)
    assert server.calls()[before:] == [*BEFORE_A_MODEL_IS_LOADED, *BY_TRL]


def test_two_rollouts(server, without_nccl, tmp_path):
    before, sampled = len(server.calls()), len(server.sampling())
    trainer = make(server, tmp_path, {"advantage_estimator": reading_estimator}, max_steps=2, learning_rate=1e-2)
    made = [*BEFORE_A_MODEL_IS_LOADED, *BY_TRL, "POST /init_weight_transfer_engine", *["GET /server_info"] * 2]
    assert server.calls()[before:] == made
    outputs, rollouts = keep_outputs(trainer), keep_rollouts(trainer)
    trainer.train()
    assert server.calls()[before:] == [*made, *ROLLOUT, *ROLLOUT]

    # Two prompts per rollout, with four responses each.
    want = {"n": "4", "temperature": "1.0", "top_p": "1.0", "top_k": "0", "min_p": "0.0", "repetition_penalty": "1.0"}
    want |= {"max_tokens": "12", "logprobs": "0"}
    assert [{name: each[name] for name in want} for each in server.sampling()[sampled:]] == [want] * 4

    # Policy and server agree on the log-probabilities, also after the weights have changed.
    assert max(differences(output).max() for output in outputs) < 1e-3
    for output, rollout in zip(outputs, rollouts, strict=True):
        mask = output["completion_mask"]
        reported = -(output["sampling_per_token_logps"] * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(rollout.metrics["surprisal"].flatten(), reported)


def test_weights_of_the_trainer_reach_the_server(server, without_nccl, tmp_path):
    """The server samples from the weights that the trainer has, not from those that it was started with."""
    trainer = make(server, tmp_path, max_steps=1, learning_rate=0.0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(0.5)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert differences(outputs[0]).max() < 1e-3
    assert outputs[0]["sampling_per_token_logps"].mean() < -1.5, "the trained model is much surer of its tokens"


def test_sampling_options(server, without_nccl, tmp_path):
    options = {"top_p": 0.9, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "temperature": 0.7}
    extra = {"frequency_penalty": 0.25}
    sampled = len(server.sampling())
    trainer = make(
        server,
        tmp_path,
        {"advantage_estimator": reading_estimator},
        **options,
        generation_kwargs=extra,
        num_generations=2,
        max_completion_length=8,
        max_steps=1,
    )
    outputs, rollouts = keep_outputs(trainer), keep_rollouts(trainer)
    trainer.train()
    want = {name: str(value) for name, value in (options | extra | {"n": 2, "max_tokens": 8}).items()}
    assert [{name: each[name] for name in want} for each in server.sampling()[sampled:]] == [want] * 4

    # The server's log-probabilities are those of the truncated distribution, so the surprisal is the policy's.
    mask = outputs[0]["completion_mask"]
    own = -(outputs[0]["old_per_token_logps"] * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(rollouts[0].metrics["surprisal"].flatten(), own)
    assert differences(outputs[0]).max() > 0.05


def test_a_controller_moves_the_temperature_of_the_server(server, without_nccl, tmp_path):
    """The next rollout is sampled at the new temperature, with log-probabilities at that temperature."""
    sampled = len(server.sampling())
    controller = {"e3_temperature": {"target_entropy": 1.5, "init_steps": 0}}  # vLLM takes temperatures up to 2
    trainer = make(server, tmp_path, controller=controller, max_steps=3, learning_rate=0.0)
    outputs = keep_outputs(trainer)
    trainer.train()
    temperatures = [float(each["temperature"]) for each in server.sampling()[sampled:]]
    moved = [entry["controller/temperature"] for entry in logged(trainer)]
    assert temperatures == [temperature for temperature in moved for _ in range(2)]
    assert moved[0] == 1.0 and moved[2] > moved[1] > 1.1
    assert max(differences(output).max() for output in outputs) < 1e-3


def test_an_error_of_the_server_ends_training(server, without_nccl, tmp_path):
    trainer = make(server, tmp_path, max_completion_length=64)
    with pytest.raises(Exception, match=r"Request failed: 400, .*maximum context length is 64 tokens"):
        trainer.train()


def test_a_server_of_another_model_is_rejected(server, tmp_path):
    other = shutil.copytree(TASK.model_path, tmp_path / "other_model")
    with pytest.raises(ValueError, match=f"vllm_server_base_url='{server.url}' serves .*, but the trained model is"):
        make(server, tmp_path, model=other)


def test_a_server_with_another_vocabulary_is_rejected(server, tmp_path):
    same_name = shutil.copytree(TASK.model_path, tmp_path / TASK.model_path.name)
    tokenizer = json.loads((same_name / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (same_name / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="with a vocabulary that differs from the trainer's"):
        make(server, tmp_path, model=same_name)


def test_an_address_of_something_else_is_rejected(server, tmp_path):
    url = f"{server.url}/v1"
    with pytest.raises(ConnectionError, match=f"vllm_server_base_url='{url}': no vLLM server.*{url}/health gives 404"):
        make(server, tmp_path, vllm_server_base_url=url)


def test_a_server_that_dies_and_returns(server, without_nccl, tmp_path, monkeypatch):
    """The last test, since the server restarts."""
    monkeypatch.setattr(Retry, "get_backoff_time", lambda retry: 0.0)  # TRL's client would try for a minute

    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1 and alive:
            alive.pop().kill()
        return [float(len(completion) % 2) for completion in completions]

    alive = [server]
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    trainer = make(server, tmp_path, {"reward_funcs": reward}, **options)
    with pytest.raises(requests.exceptions.ConnectionError, match=f"host='127.0.0.1', port={server.port}"):
        trainer.train()
    server.start()
    with pytest.raises(ConnectionError, match=f"vllm_server_base_url='{server.url}': no vLLM server is ready there"):
        check_server(trainer.model, trainer.args, {})  # it is starting
    server.wait()
    # The trainer would sample from the weights that the server was started with.
    with pytest.raises(RuntimeError, match=f"the vLLM server at {server.url} has restarted"):
        trainer.train(resume_from_checkpoint=True)

    resumed = make(server, tmp_path, {"reward_funcs": reward}, **options)
    outputs = keep_outputs(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in logged(resumed)] == [1, 2, 3]
    assert max(differences(output).max() for output in outputs) < 1e-3
