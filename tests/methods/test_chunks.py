"""Sampling in chunks: each prompt is sampled once, even if the run is killed, and its responses are scored."""

import asyncio
import math
import threading

import pytest
from datasets import Dataset

from canon_trl.sampling.chunks import ChunkLog, collect_records, missing_chunks, sample_chunks
from canon_trl.sampling.samplers import Response
from canon_trl.sampling.scoring import Scorer

DATA = Dataset.from_dict({"prompt": [str(index) for index in range(10)]})


def fixed_sample(prompts, seed):
    return [[Response([int(prompt), seed % 97, place]) for place in range(2)] for prompt in prompts]


def fixed_score(rows, responses):
    return [
        [float(row["prompt"]) + response.ids[1] / 100 + response.ids[2] / 1000 for response in given]
        for row, given in zip(rows, responses, strict=True)
    ]


def run(folder, ranks=1, sample=fixed_sample, **settings):
    """Run the ranks one after another and return the first one's log."""
    logs = [ChunkLog(folder, settings, rank=rank) for rank in range(ranks)]
    missing = missing_chunks(DATA, logs[0], chunk_size=3)
    for rank, log in enumerate(logs):
        sample_chunks(DATA, sample, fixed_score, log, chunks=missing[rank::ranks], chunk_size=3, seed=5)
    return logs[0]


def test_each_prompt_is_sampled_once_in_order(tmp_path):
    log = run(tmp_path)
    seeds = [(5 * 1_000_003 + chunk) % 97 for chunk in range(4)]
    want = [[prompt + seeds[prompt // 3] / 100 + place / 1000 for place in range(2)] for prompt in range(10)]
    assert collect_records(DATA, log) == want
    assert [len(rows) for rows in log.read().values()] == [3, 3, 3, 1]


@pytest.mark.parametrize("killed_at", [0, 1, 3])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (1, 3)])
def test_a_killed_run_resumes_with_the_same_numbers(tmp_path, killed_at, ranks):
    """Also on another number of ranks, and with a line that the kill has cut."""
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

    def resumed(prompts, seed):
        sampled.append(prompts)
        return fixed_sample(prompts, seed)

    log = run(tmp_path / "killed", ranks=after, sample=resumed)
    assert collect_records(DATA, log) == want
    assert sorted(prompt for prompts in sampled for prompt in prompts) == sorted(DATA["prompt"])


def test_changed_settings_are_rejected(tmp_path):
    run(tmp_path, temperature=1.0, seed=1)
    with pytest.raises(ValueError, match=r"was started with temperature=1.0, not 0.5; choose another output_dir"):
        ChunkLog(tmp_path, {"temperature": 0.5, "seed": 1})
    with pytest.raises(ValueError, match=r"was started with top_k=None, not 5"):
        ChunkLog(tmp_path, {"temperature": 1.0, "seed": 1, "top_k": 5})
    with pytest.raises(ValueError, match=r"was started with seed=1, not None"):
        ChunkLog(tmp_path, {"temperature": 1.0})


def test_an_unfinished_log_is_rejected(tmp_path):
    log = ChunkLog(tmp_path, {})
    log.append(1, [[1.0]])
    with pytest.raises(ValueError, match="1 of 10 prompts have been sampled; let the sampling finish"):
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
def test_a_hanging_reward_function_is_stopped_and_named(function):
    score = Scorer([function], Letters(), reward_time_limit=0.2)
    with pytest.raises(TimeoutError, match=rf"'{function.__name__}' took longer than reward_time_limit=0.2 seconds"):
        score([{"prompt": "p"}], [[Response([1])]])


def test_bad_scorer_options():
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0\] must be one for each of the 2 functions"):
        Scorer([print, print], Letters(), [1.0])
    with pytest.raises(ValueError, match=r"reward_time_limit=nan must lie in \(0, inf\)"):
        Scorer([print], Letters(), reward_time_limit=math.nan)
    with pytest.raises(TypeError, match="reward_funcs has 'judge', which is not a reward function"):
        Scorer(["judge"], Letters())
