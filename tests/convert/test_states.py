"""Reading and writing weights: the same tensors, one at a time."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from realcustom.convert.folder import kind_of
from realcustom.convert.states import read_state, whole_folder, write_state

STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_safetensors_reads_what_is_written(tmp_path):
    state = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
        "whole": torch.arange(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(2).half(),
    }
    write_state(tmp_path / "as-is.safetensors", state)
    read = load_file(tmp_path / "as-is.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype for name, tensor in read.items())
    write_state(tmp_path / "bf16.safetensors", state, torch.bfloat16)
    read = load_file(tmp_path / "bf16.safetensors")
    assert read["whole"].dtype == torch.int64
    assert torch.equal(read["b"], state["b"].bfloat16())


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells which memory no file backs")
def test_a_large_file_is_never_in_memory(tmp_path):
    """96 MiB of weights, of which a few MiB are held at a time."""
    torch.save({f"layer.{index}": torch.zeros(2**18) for index in range(96)}, tmp_path / "large.pth")
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_state(tmp_path / "large.safetensors", read_state(tmp_path / "large.pth"), torch.bfloat16)
    done.set()
    watcher.join()
    assert most - before < 24 * 2**20
    assert (tmp_path / "large.safetensors").stat().st_size > 48 * 2**20


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail() -> None:
        with whole_folder(tmp_path / "out") as work:
            (work / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "out") as work:
        (work / "file").touch()
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "text.token_embedding.weight"], "SigLIP"),
        (["patch_embed.proj.weight", "reg_token", "cls_token"], "DINOv2"),
        (["conv_in.weight", "time_embedding.linear_1.weight"], "U-Net"),
        (["mid_block.attentions.0.transformer_blocks.0.attn2.to_k_vision.weight"], "RealCustom++ weights"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "autoencoder"),
        (["text_model.embeddings.token_embedding.weight"], "text encoder"),
        (["image_proj.latents", "ip_adapter.1.to_k_ip.weight"], "IP-Adapter"),
        (["vision_model.embeddings.class_embedding", "visual_projection.weight"], "CLIP image encoder"),
        (["layers.0.weight"], None),
    ],
)
def test_files_are_known_by_their_keys(keys, kind):
    assert kind_of(keys) == kind
