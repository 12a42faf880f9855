"""Fetching: once, continued after a cut, checked, and with a token only for the hub itself."""

import pickle
from pathlib import Path

import pytest

from realcustom.hub.fetching import PARTIAL, fetch, listing
from realcustom.hub.trouble import NeedsOption

DATA = bytes(range(256)) * 40  # 10240 bytes


@pytest.fixture
def repo(hub, tmp_path):
    (tmp_path / "repo" / "sub").mkdir(parents=True)
    (tmp_path / "repo" / "sub" / "large.bin").write_bytes(DATA)
    (tmp_path / "repo" / "small.json").write_text("{}")
    (tmp_path / "repo" / "empty.txt").touch()
    hub.repos["me/repo"] = tmp_path / "repo"
    return hub


def parts(listed) -> list[Path]:
    return list((listed.folder.parents[1] / "blobs").glob(f"*{PARTIAL}*"))


def test_files_arrive_whole_and_once(repo):
    listed = listing("me/repo")
    assert listed.sizes == {"sub/large.bin": len(DATA), "small.json": 2, "empty.txt": 0}
    folder = fetch(listed, listed.sizes)
    assert (folder / "sub" / "large.bin").read_bytes() == DATA
    assert (folder / "empty.txt").read_bytes() == b""
    assert parts(listed) == []
    repo.log.clear()
    fetch(listed, listed.sizes)
    assert repo.log == []
    assert (listed.folder.parents[1] / "refs" / "main").read_text() == listed.commit, "other programs find it, too"


def test_a_cut_download_goes_on_where_it_was(repo):
    listed = listing("me/repo")
    repo.cut["sub/large.bin"] = 4000
    with pytest.raises(ValueError, match="what was fetched so far is kept"):
        fetch(listed, ["sub/large.bin"])
    assert [part.stat().st_size for part in parts(listed) if part.name.endswith(PARTIAL)] == [4000]
    repo.log.clear()
    folder = fetch(listed, ["sub/large.bin"])
    assert (folder / "sub" / "large.bin").read_bytes() == DATA
    assert repo.fetched() == {"sub/large.bin": len(DATA) - 4000}
    assert parts(listed) == []


def test_parts_that_do_not_fit_together_are_not_kept(repo):
    listed = listing("me/repo")
    repo.cut["sub/large.bin"] = 4000
    with pytest.raises(ValueError, match="is kept"):
        fetch(listed, ["sub/large.bin"])
    (part,) = [part for part in parts(listed) if part.name.endswith(PARTIAL)]
    part.write_bytes(b"\0" * 4000)
    with pytest.raises(ValueError, match="do not fit together"):
        fetch(listed, ["sub/large.bin"])
    assert (fetch(listed, ["sub/large.bin"]) / "sub" / "large.bin").read_bytes() == DATA


def test_offline_the_cache_alone_answers(repo, monkeypatch):
    from huggingface_hub import constants

    fetch(listing("me/repo"), ["small.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    listed = listing("me/repo")
    assert set(listed.sizes) == {"small.json"}
    assert (fetch(listed, ["small.json"]) / "small.json").read_text() == "{}"
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        fetch(listed, ["sub/large.bin"])


def test_a_missing_option_is_said_in_the_words_of_the_door():
    error = NeedsOption("Give one with {option}.", "reference_encoder")
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == "Give one with reference_encoder=FOLDER."
    assert error.spoken == again.spoken == "Give one with --reference-encoder FOLDER."
