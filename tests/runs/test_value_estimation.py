"""Stage 1 of A*-PO: every prompt is sampled once, whatever happens in between."""

import asyncio
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import estimate_values
import psutil
import pytest
import torch
from datasets import Dataset, load_dataset
from hub import local_hub
from huggingface_hub import ModelCard
from pyarrow import parquet
from toy import TASK, assert_same_but_for_rounding, base_model
from transformers import AutoTokenizer
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from canon_trl.advantages import optimal_value
from canon_trl.policy_losses.astar_po import PAPER
from canon_trl.publishing.citation import package_citation
from canon_trl.sampling.chunks import ChunkLog, collect_records, missing_chunks, sample_chunks
from canon_trl.sampling.samplers import Response, TransformersSampler
from canon_trl.sampling.scoring import Scorer

ROOT = Path(__file__).parents[2]
DATA = Dataset.from_dict({"prompt": [str(index) for index in range(10)]})


def fixed_sample(prompts, seed):
    return [[Response([int(prompt), seed % 97, place]) for place in range(2)] for prompt in prompts]


def fixed_score(rows, responses):
    return [
        [float(row["prompt"]) + response.ids[1] / 100 + response.ids[2] / 1000 for response in given]
        for row, given in zip(rows, responses, strict=True)
    ]


def run(folder, ranks=1, sample=fixed_sample, **settings):
    """What that many ranks do, one after the other; the first one's log."""
    logs = [ChunkLog(folder, settings, rank=rank) for rank in range(ranks)]
    missing = missing_chunks(DATA, logs[0], chunk_size=3)
    for rank, log in enumerate(logs):
        sample_chunks(DATA, sample, fixed_score, log, chunks=missing[rank::ranks], chunk_size=3, seed=5)
    return logs[0]


def test_every_prompt_once_in_order(tmp_path):
    log = run(tmp_path)
    seeds = [(5 * 1_000_003 + chunk) % 97 for chunk in range(4)]
    want = [[prompt + seeds[prompt // 3] / 100 + place / 1000 for place in range(2)] for prompt in range(10)]
    assert collect_records(DATA, log) == want
    assert [len(rows) for rows in log.read().values()] == [3, 3, 3, 1]


@pytest.mark.parametrize("killed_at", [0, 1, 3])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (1, 3)])
def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path, killed_at, ranks):
    """Also on another number of ranks, and with a line that the kill has torn."""
    want = collect_records(DATA, run(tmp_path / "whole"))
    sampled = []

    def dying(prompts, seed):
        if len(sampled) == killed_at:
            raise KeyboardInterrupt
        sampled.append(prompts)
        return fixed_sample(prompts, seed)

    before, after = ranks
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", ranks=before, sample=dying)
    with (tmp_path / "killed" / "chunks-00000.jsonl").open("a") as file:
        file.write('{"chunk": 3, "reco')

    def going_on(prompts, seed):
        sampled.append(prompts)
        return fixed_sample(prompts, seed)

    log = run(tmp_path / "killed", ranks=after, sample=going_on)
    assert collect_records(DATA, log) == want
    assert sorted(prompt for prompts in sampled for prompt in prompts) == sorted(DATA["prompt"])


def test_other_settings_are_refused(tmp_path):
    run(tmp_path, temperature=1.0, seed=1)
    with pytest.raises(ValueError, match=r"was begun with temperature=1.0, not 0.5; name another output_dir"):
        ChunkLog(tmp_path, {"temperature": 0.5, "seed": 1})
    with pytest.raises(ValueError, match=r"was begun with top_k=None, not 5"):
        ChunkLog(tmp_path, {"temperature": 1.0, "seed": 1, "top_k": 5})
    with pytest.raises(ValueError, match=r"was begun with seed=1, not None"):
        ChunkLog(tmp_path, {"temperature": 1.0})


def test_an_unfinished_log_is_not_taken_for_whole(tmp_path):
    log = ChunkLog(tmp_path, {})
    log.append(1, [[1.0]])
    with pytest.raises(ValueError, match="1 of 10 prompts have been sampled; run it to its end"):
        collect_records(DATA, log)


class Letters:
    def batch_decode(self, ids, skip_special_tokens):
        return ["".join(map(str, row)) for row in ids]


def test_scores_are_weighted_sums():
    def first(prompts, completions, completion_ids, answer, log_extra, log_metric, trainer_state):
        log_extra("column", [1, 2])
        log_metric("mean", 1.5)
        assert (prompts, completions, completion_ids) == (["p", "q"], ["12", "3"], [[1, 2], [3]])
        return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]

    async def second(completions, **kwargs):
        return [None, 2.0]

    rows = [{"prompt": "p", "answer": "12"}, {"prompt": "q", "answer": "0"}]
    responses = [[Response([1, 2])], [Response([3])]]
    assert Scorer([first, second], Letters(), [1.0, 0.5])(rows, responses) == [[1.0], [1.0]]
    assert Scorer([second], Letters())(rows, responses) == [[None], [2.0]]

    def told(completions, **kwargs):
        assert completions == [[{"role": "assistant", "content": "1"}]]
        return [0.5]

    assert Scorer([told], Letters())([{"prompt": [{"role": "user", "content": "?"}]}], [[Response([1])]]) == [[0.5]]


def never_ends(completions, **kwargs):
    threading.Event().wait()


async def never_ends_awaited(completions, **kwargs):
    await asyncio.Event().wait()


@pytest.mark.parametrize("function", [never_ends, never_ends_awaited])
def test_a_function_that_hangs_is_stopped_and_named(function):
    score = Scorer([function], Letters(), reward_time_limit=0.2)
    with pytest.raises(TimeoutError, match=rf"'{function.__name__}' took longer than reward_time_limit=0.2 seconds"):
        score([{"prompt": "p"}], [[Response([1])]])


def test_what_cannot_score():
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0\] must be one for each of the 2 functions"):
        Scorer([print, print], Letters(), [1.0])
    with pytest.raises(ValueError, match=r"reward_time_limit=nan must lie in \(0, inf\)"):
        Scorer([print], Letters(), reward_time_limit=math.nan)
    with pytest.raises(TypeError, match="reward_funcs has 'judge'; only reward functions can score here"):
        Scorer(["judge"], Letters())


def test_sampling_with_transformers():
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sample = TransformersSampler(base_model(), tokenizer, num_samples=3, max_new_tokens=12, top_k=5, top_p=0.9)
    prompts = ["7+8*3-9+4*6=", "1*2=", "9-9*1="]
    first, again = sample(prompts, 7), sample(prompts, 7)
    assert first == again != sample(prompts, 8)
    assert [len(responses) for responses in first] == [3, 3, 3]
    for responses in first:
        for response in responses:
            assert 1 <= len(response.ids) <= 12 and response.entropy is None
            ends = [token in (tokenizer.eos_token_id, tokenizer.pad_token_id) for token in response.ids]
            assert not any(ends[:-1])
            assert response.truncated == (not ends[-1]) and (ends[-1] or len(response.ids) == 12)


def test_the_sampler_writes_what_generate_writes():
    """With the likeliest token alone there is nothing to chance: the same text, though rows leave the batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompts = [*TASK.dataset("test", 30)["prompt"], "1*2=", "9-9*1="]
    sampled = TransformersSampler(model, tokenizer, num_samples=2, max_new_tokens=40, top_k=1)(prompts, 0)
    assert len({len(responses[0].ids) for responses in sampled}) > 2, "the case needs different lengths"
    for prompt, responses in zip(prompts, sampled, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)
        assert [response.ids for response in responses] == [written[0, ids["input_ids"].shape[1] :].tolist()] * 2


def test_every_end_ends_a_response():
    """That of the tokenizer, and those of the generation config."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    model.generation_config.eos_token_id = mark = tokenizer.convert_tokens_to_ids("#")
    sample = TransformersSampler(model, tokenizer, num_samples=8, max_new_tokens=40, temperature=2.0)
    responses = [response for given in sample(TASK.dataset("test", 8)["prompt"][:], 0) for response in given]
    ends = {mark, tokenizer.eos_token_id}
    assert {response.ids[-1] for response in responses if not response.truncated} == ends
    assert not any(ends & {*response.ids[:-1]} for response in responses)


def test_the_sampler_draws_from_the_models_distribution():
    """The share of each first token over many responses is its probability, at another temperature too."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompt = "7+8*3-9+4*6="
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    for temperature in (1.0, 2.0):
        options = {"num_samples": 4000, "max_new_tokens": 1, "temperature": temperature}
        (responses,) = TransformersSampler(model, tokenizer, **options)([prompt], 3)
        shares = torch.tensor([response.ids[0] for response in responses]).bincount(minlength=len(logits)) / 4000
        torch.testing.assert_close(shares, (logits / temperature).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 5, "top_p": 0.9}])
def test_entropies_are_those_of_the_distribution_that_is_sampled_from(options):
    """Against a pass over whole responses, and the surprisal of many sampled tokens has the same mean."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompts = TASK.dataset("test", 3)["prompt"][:]
    sample = TransformersSampler(model, tokenizer, num_samples=60, max_new_tokens=20, entropies=True, **options)
    entropy_sum = surprisal_sum = tokens = 0
    for prompt, responses in zip(prompts, sample(prompts, 1), strict=True):
        start = tokenizer(prompt)["input_ids"]
        for response in responses:
            ids = torch.tensor([start + response.ids])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(start) - 1 : -1] / options["temperature"]
            if "top_k" in options:
                logits = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(5)(None, logits))
            log_probs = logits.log_softmax(-1)
            entropies = -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(-1)
            assert response.entropy == pytest.approx(entropies.mean().item(), abs=1e-5)
            entropy_sum += entropies.sum().item()
            surprisal_sum -= log_probs.gather(1, ids[0, len(start) :, None]).sum().item()
            tokens += len(response.ids)
    assert surprisal_sum / tokens == pytest.approx(entropy_sum / tokens, abs=0.05)


def script(folder, *flags, ranks=None):
    launcher = ["--config_file", str(ROOT / "tests" / "configs" / "cpu_two_processes.yaml")] if ranks else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--main_process_port", "0"]
    command += [str(ROOT / "examples" / "estimate_values.py"), "--task", "arithmetic", "--output_dir", str(folder)]
    command += ["--task_train_prompts", "48", "--task_eval_prompts", "16", "--chunk_prompts", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return [*command, "--max_completion_length", "40", *flags], environment


def finish(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values") / "whole"
    return folder, finish(*script(folder))


def test_the_dataset_of_the_script(whole):
    folder, done = whole
    data = load_dataset(str(folder))
    assert {split: len(part) for split, part in data.items()} == {"train": 48, "test": 16}
    assert data["train"].column_names == ["prompt", "answer", "rewards", "v_star", "pass_rate"]
    rewards = torch.tensor(data["train"]["rewards"][:], dtype=torch.float64)
    assert rewards.shape == (48, 8) and set(rewards.flatten().tolist()) == {0.0, 1.0}
    assert 0.3 < rewards.mean() < 0.6  # the base model's accuracy
    assert data["train"]["v_star"][:] == pytest.approx(optimal_value(rewards, beta=0.5).tolist(), rel=1e-12)
    assert data["train"]["prompt"][:] == TASK.dataset("train", 48)["prompt"][:]
    card = (folder / "README.md").read_text()
    for line in ("| `num_samples` | `8` |", "| `seed` | `0` |", "| `temperature` | `1.0` |", "arithmetic_model"):
        assert line in card, line
    assert "24/24" in done.stderr, "a progress bar"


def test_two_ranks_and_a_kill_give_the_same_dataset(whole, tmp_path):
    """The script on two processes, killed once some chunks are known, then on one."""
    folder = tmp_path / "killed"
    command, environment = script(folder, ranks=2)
    process = psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        known = [path.read_text().count("\n") for path in folder.glob(".progress/train/chunks-*")]
        if len(known) == 2 and min(known) > 0:  # both ranks have given something
            for each in [*process.children(recursive=True), process]:
                each.kill()
            break
        time.sleep(0.02)
    process.wait()
    assert not (folder / "train.parquet").exists(), "killed before its end"
    known = [json.loads(line) for path in folder.glob(".progress/train/*.jsonl") for line in whole_lines(path)]
    assert 2 <= len(known) < 24
    finish(*script(folder))
    for split in ("train", "test"):
        tables = [parquet.read_table(each / f"{split}.parquet").to_pylist() for each in (folder, whole[0])]
        assert_same_but_for_rounding(*tables)  # V*; prompts, answers and rewards are equal


def whole_lines(path):
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_second_run_samples_nothing(whole, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(whole[0], folder)
    done = finish(*script(folder, "--beta1", "0"))
    assert "Loading weights" not in done.stderr, "nor loads a model"
    data = load_dataset(str(folder))["train"]
    assert data["v_star"][:] == pytest.approx(data["pass_rate"][:])


LOAD_BACK = """
import json
from datasets import load_dataset
print(json.dumps({split: part.to_dict() for split, part in load_dataset("me/values").items()}))
"""


def test_the_dataset_is_pushed_and_loaded_back(whole, tmp_path):
    """A refused upload loses nothing, and the printed command makes up for it."""
    folder = tmp_path / "pushed"
    shutil.copytree(whole[0], folder)
    with local_hub() as hub:
        command, environment = script(folder, "--push_to_hub", "me/values")
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment |= hub.environment | {"HF_HOME": str(tmp_path / "home"), "PATH": programs}
        hub.status = 403
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert refused.returncode != 0 and hub.files == {}
        hub.status = 200
        told = refused.stderr[refused.stderr.index("The upload failed.") :]
        assert f"Everything that was to be uploaded is in {folder}; once the cause is gone, this uploads it:" in told
        (retry,) = re.findall(r"hf upload .*", told)
        finish(["bash", "-c", retry], environment)
        files = hub.of("datasets/me/values")
        assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert files.keys() == {"README.md", "train.parquet", "test.parquet"}
        loaded = json.loads(finish([sys.executable, "-c", LOAD_BACK], environment).stdout)
        assert loaded == {split: part.to_dict() for split, part in load_dataset(str(folder)).items()}
        finish(command, environment)
    assert hub.commits == ["datasets/me/values"] * 2
    card = files["README.md"].decode()
    assert "--dataset_name me/values" in card and {*ModelCard(card).data.tags} == {"trl", "canon_trl", "astar_po"}
    assert PAPER.citation in card and package_citation() in card
    assert "- Reference model: `arithmetic_model`\n- Data: the embedded task arithmetic\n" in card
    assert str(ROOT) not in card and str(tmp_path) not in card


def test_the_next_script_trains_on_it(whole, tmp_path):
    """`train_astar_po.py` on the folder that `estimate_values.py` wrote, as the README has it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "examples" / "train_astar_po.py")]
    command += ["--config", str(ROOT / "examples" / "configs" / "arithmetic_astar_po.yaml"), "--values", str(whole[0])]
    command += ["--output_dir", str(tmp_path), "--max_steps", "2", "--per_device_train_batch_size", "16"]
    done = finish(command, os.environ | {"HF_HUB_OFFLINE": "1"})
    assert "accuracy on held-out prompts: " in done.stdout
    history = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "astar_po/v_star" in entry] == [1, 2]
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "curves.png").exists()
    assert "2505.20686" in (tmp_path / "README.md").read_text()


def test_values_that_were_estimated_anew_are_the_ones_that_are_loaded(tmp_path):
    """datasets caches what it loads; a folder of the same name with other values must not come out of its cache."""
    for prompts in (4, 6):
        folder = tmp_path / f"{prompts} prompts" / "values"
        options = {"task": "arithmetic", "output_dir": folder, "task_train_prompts": prompts, "num_samples": 2}
        options |= {"max_completion_length": 4, "include_test": "false"}
        estimate_values.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
        assert len(load_dataset(str(folder))["train"]) == prompts
