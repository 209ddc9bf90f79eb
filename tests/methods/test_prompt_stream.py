"""Fresh prompts: passes over the data, resuming from anywhere, and few reads of a stream."""

import gc
from collections import Counter

import pytest
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset

from canon_trl.hook.rollout_parts import plain
from canon_trl.sampling import PromptStream, prompt_stream


def rows(size, first=0):
    return Dataset.from_dict({"prompt": [str(index) for index in range(first, first + size)]})


def numbered(shards, size, read):
    """A stream of shards with `size` rows each; `read` counts the rows read."""

    def generate(shard):
        for number in shard:
            for row in range(size):
                read["rows"] += 1
                yield {"prompt": str(number * size + row)}

    return IterableDataset.from_generator(generate, gen_kwargs={"shard": list(range(shards))})


def drawn(stream, count):
    return [row["prompt"] for row in stream.take(count)]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_prompts_come_in_passes(shuffle, streamed):
    data = rows(5).to_iterable_dataset() if streamed else rows(5)
    stream = PromptStream(data, seed=3, shuffle=shuffle)
    taken = drawn(stream, 12)
    assert stream.drawn == 12
    assert sorted(taken[:5]) == sorted(taken[5:10]) == list("01234")
    if shuffle:
        assert taken[:5] != taken[5:10]
        assert drawn(PromptStream(data, seed=4), 12) != taken
    else:
        assert taken == list("012340123401")
    stream.restart()
    assert drawn(stream, 12) == taken


def test_the_order_differs_from_the_samplers():
    """The sampler's order would repeat the prompts of the first rollouts."""
    sampled = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    assert [int(prompt) for prompt in drawn(PromptStream(rows(20), seed=0), 20)] != sampled


def parquet(tmp_path):
    for part in range(3):
        rows(7, first=7 * part).to_parquet(tmp_path / f"{part}.parquet")
    files = [str(tmp_path / f"{part}.parquet") for part in range(3)]
    return load_dataset("parquet", data_files=files, streaming=True, split="train", cache_dir=str(tmp_path / "cache"))


SOURCES = {
    "dataset": lambda tmp_path: rows(20),
    "stream": lambda tmp_path: rows(20).to_iterable_dataset(num_shards=3),
    "generator": lambda tmp_path: numbered(4, 5, Counter()),
    "parquet": parquet,
    "mapped and filtered": lambda tmp_path: (
        numbered(4, 5, Counter())
        .filter(lambda row: int(row["prompt"]) % 3 > 0)
        .map(lambda row: {"twice": row["prompt"]})
    ),
    "mapped in batches": lambda tmp_path: parquet(tmp_path).map(
        lambda batch: {"prompt": [f"{text}!" for text in batch["prompt"]]}, batched=True, batch_size=4
    ),
    "interleaved": lambda tmp_path: interleave_datasets(
        [numbered(2, 5, Counter()), rows(9, first=50).to_iterable_dataset()], probabilities=[0.5, 0.5], seed=4
    ),
    "one after another": lambda tmp_path: concatenate_datasets([numbered(2, 5, Counter()), numbered(2, 3, Counter())]),
    "skipped and taken": lambda tmp_path: numbered(4, 5, Counter()).skip(3).take(11),
    "shuffled before": lambda tmp_path: numbered(4, 5, Counter()).shuffle(seed=1, buffer_size=6),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_resuming_from_anywhere(tmp_path, monkeypatch, source, shuffle):
    """Also from a saved file, and while other code iterates over the same stream."""
    monkeypatch.setattr(prompt_stream, "BLOCK", 4)
    data = SOURCES[source](tmp_path)
    other = iter(data.repeat(5)) if isinstance(data, IterableDataset) else None
    whole = PromptStream(data, seed=3, shuffle=shuffle)
    taken, places = [], []
    for _ in range(50):
        torch.save(plain(whole.state_dict()), tmp_path / "place")
        places.append(torch.load(tmp_path / "place", weights_only=True))
        taken += drawn(whole, 1)
        if other is not None:
            next(other)
    assert len(set(taken)) >= 5
    for start in range(0, 50, 3):
        later = PromptStream(data, seed=3, shuffle=shuffle)
        later.load_state_dict(places[start])
        assert later.drawn == start
        assert drawn(later, 50 - start) == taken[start:], start


def test_a_stream_is_closed_when_it_is_released_or_deleted():
    """Without the garbage collector, which may run in a reader's thread and make it wait for itself."""
    closed = Counter()

    def generate(shard):
        try:
            yield from ({"prompt": str(row)} for row in range(10_000))
        finally:
            closed["readers"] += 1

    data = IterableDataset.from_generator(generate, gen_kwargs={"shard": [0]})
    gc.disable()
    try:
        stream = PromptStream(data, seed=0)
        taken = drawn(stream, 3)
        stream.release()
        assert closed["readers"] == 1
        assert drawn(PromptStream(data, seed=0), 5) == taken + drawn(stream, 2)
        assert closed["readers"] == 2
        del stream
        assert closed["readers"] == 3
    finally:
        gc.enable()


def test_resuming_reads_a_block_once_and_skips_earlier_shards():
    read = Counter()
    whole = PromptStream(numbered(60, 1000, read), seed=0)
    assert len(set(drawn(whole, 50_000))) == 50_000
    assert read["rows"] == 50_000
    place = whole.state_dict()
    following = drawn(whole, 1)
    read.clear()
    later = PromptStream(numbered(60, 1000, read), seed=0)
    later.load_state_dict(place)
    assert drawn(later, 1) == following
    assert read["rows"] <= 2 * prompt_stream.BLOCK  # the shard whose end it had reached, and a block


def test_resuming_a_stream_with_a_buffer_rereads_one_pass():
    read = Counter()
    whole = PromptStream(numbered(4, 1000, read).shuffle(seed=1, buffer_size=100), seed=0)
    whole.take(10_500)
    place = whole.state_dict()
    following = drawn(whole, 1)
    read.clear()
    later = PromptStream(numbered(4, 1000, read).shuffle(seed=1, buffer_size=100), seed=0)
    later.load_state_dict(place)
    assert drawn(later, 1) == following
    assert read["rows"] <= 3200  # 2,500 of the third pass, to the end of their block, and the buffer


def test_an_empty_stream_is_an_error():
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="train_dataset is an empty stream"):
        PromptStream(empty, seed=0).take(1)
