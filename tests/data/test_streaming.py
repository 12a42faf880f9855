"""Streaming: everything once an epoch, shuffled, the same after a restart, with and without loader workers."""

import json

import pytest
import torch

from realcustom.data.shards import write_index, write_shard
from realcustom.data.streaming import ShardStream, find_shards

pytest.importorskip("webdataset")


def number(sample):
    return json.loads(sample["json"])["number"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six shards of 8, 8, 8, 8, 8 and 5 numbered samples."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(6):
        count = 5 if shard == 5 else 8
        samples = [
            {"__key__": f"{shard:02d}{k:03d}", "json": json.dumps({"number": 8 * shard + k}).encode()}
            for k in range(count)
        ]
        write_shard(samples, root / f"s-{shard:03d}.tar")
    write_index(root)
    return root


def stream(folder, **options):
    return ShardStream(find_shards(str(folder)), decode=number, **options)


def test_find_shards(folder, tmp_path):
    assert [shard.count for shard in find_shards(f"{folder}/s-*.tar")] == [8, 8, 8, 8, 8, 5]
    remote = find_shards(f"file://{folder}/s-{{000..002}}.tar")
    assert [shard.count for shard in remote] == [8, 8, 8]
    with pytest.raises(ValueError, match="No shards match"):
        find_shards(str(tmp_path))


def test_an_epoch_gives_everything_once_in_a_new_order(folder):
    data = stream(folder)
    first, second = list(data.at(0)), list(data.at(1))
    assert sorted(first) == sorted(second) == list(range(45))
    assert first != second != sorted(second)
    assert list(stream(folder).at(1)) == second
    assert list(stream(folder, seed=5).at(1)) != second


@pytest.mark.parametrize("position", [0, 3, 16, 44, 45])
def test_resume_continues_with_the_next_sample(folder, position):
    data = stream(folder)
    assert list(data.at(2, position)) == list(data.at(2))[position:]


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_resume_with_loader_workers(folder, batches):
    data = stream(folder, batch_size=2)

    def load(position):
        loader = torch.utils.data.DataLoader(data.at(0, position), batch_size=2, num_workers=2)
        return [batch.tolist() for batch in loader]

    whole = load(0)
    assert len({value for batch in whole for value in batch}) == data.samples_per_epoch(workers=2)
    assert load(2 * batches) == whole[batches:]


def test_ranks_are_disjoint_and_in_step(folder):
    parts = [list(stream(folder, rank=rank, ranks=2, batch_size=4).at(0)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 20
    assert not set(parts[0]) & set(parts[1])


def test_skipped_shards_are_not_read(folder, monkeypatch):
    from realcustom.data import streaming

    opened = []
    original = streaming.raw_samples
    monkeypatch.setattr(streaming, "raw_samples", lambda url: opened.append(url) or original(url))
    list(stream(folder, group=1).at(0, 30))
    assert len(opened) <= 3


def test_too_few_shards(folder):
    with pytest.raises(ValueError, match="too few"):
        list(stream(folder, rank=0, ranks=7))
