"""Checkpoints as files: what is read, what is refused, and that nothing of a file is ever run."""

import argparse
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.weights.reading import check_values, read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4)}
EMA = {key: value + 1 for key, value in STATE.items()}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def equal(read, wanted):
    return read.keys() == wanted.keys() and all(torch.equal(read[key], wanted[key]) for key in read)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module." * 2]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path, prefix, legacy):
    path = tmp_path / "any.name"
    torch.save(prefixed(prefix), path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert equal(read.state, STATE) and (read.entry, read.model) == ("", "")


def test_safetensors_are_known_by_content_not_name(tmp_path):
    save_file(prefixed("module."), tmp_path / "weights.pth")
    assert equal(read_checkpoint(tmp_path / "weights.pth").state, STATE)
    torch.save(STATE, tmp_path / "weights.safetensors")
    assert equal(read_checkpoint(tmp_path / "weights.safetensors").state, STATE)


def test_compiled_parts_of_a_network(tmp_path):
    torch.save({"stem._orig_mod.weight": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").state) == ["stem.weight"]


@pytest.mark.parametrize(
    ("content", "entry", "without_ema", "model"),
    [
        # timm's training, with the arguments of its command line in a Namespace
        (
            {"epoch": 1, "arch": "lambdaresnet50", "state_dict": STATE, "state_dict_ema": EMA, "optimizer": {}}
            | {"args": argparse.Namespace(model="lambdaresnet50", lr=0.1)},
            "state_dict_ema",
            "state_dict",
            "lambdaresnet50",
        ),
        (
            {"model_name": "lambdaresnet32px", "model": STATE, "ema": EMA, "epoch": 3},
            "ema",
            "model",
            "lambdaresnet32px",
        ),
        ({"model": STATE, "model_ema": prefixed("module.", EMA)}, "model_ema", "model", ""),
        ({"state_dict": prefixed("module."), "best_acc": 78.2}, "state_dict", "state_dict", ""),
        ({"model_state_dict": STATE, "global_epoch": 3}, "model_state_dict", "model_state_dict", ""),
        ({"state_dict": STATE, "state_dict_ema": None}, "state_dict", "state_dict", ""),
    ],
)
def test_checkpoints_of_trainings(tmp_path, content, entry, without_ema, model):
    torch.save(content, tmp_path / "last.pth.tar")
    for use_ema, wanted in ((True, entry), (False, without_ema)):
        read = read_checkpoint(tmp_path / "last.pth.tar", use_ema=use_ema)
        assert (read.entry, read.model) == (wanted, model)
        assert equal(read.state, EMA if "ema" in wanted else STATE)


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "old pickle", "module"])
def test_nothing_is_run(tmp_path, how):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    content = {"state_dict": STATE, "args": RunsCode(marker)}
    if how in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    elif how == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(marker), protocol=4 if how == "pickle" else 0))
    refused(path, "neither a safetensors" if how == "old pickle" else "nothing of it was run")
    assert not marker.exists()
    if how != "module":  # the file does run code where it is let to
        torch.load(path, weights_only=False) if how in ("zip", "legacy") else pickle.loads(path.read_bytes())
        assert marker.exists()


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        check_values(path, read_checkpoint(path).state)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    for part in parts:
        assert re.search(part, message), message


def test_names_what_a_pickle_needs(tmp_path):
    torch.save({"state_dict": STATE, "args": RunsCode(tmp_path / "marker")}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"it needs posix\.mkdir, which may run code")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind):
    whole, path = tmp_path / "whole", tmp_path / "part.pth"
    state = {"a": torch.randn(100, 100), "b": torch.randn(50)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for length in (0, 1, 5, 9, 60, 300, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content)
    assert equal(read_checkpoint(path).state, state)


def test_a_safetensors_header_that_lies(tmp_path):
    content = bytearray(save(STATE))
    content[:8] = (2**40).to_bytes(8, "little")
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors", "not a whole safetensors file")


def test_zip_bomb(tmp_path):
    bomb = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(5_000_000)}, tmp_path / "big.pth")
    with zipfile.ZipFile(tmp_path / "big.pth") as big, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as small:
        for record in big.infolist():
            small.writestr(record.filename, big.read(record.filename))
    assert bomb.stat().st_size < 50_000
    refused(bomb, "would unpack to 19 MiB")
    # packed again, but no bomb
    torch.save(STATE, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in stored.infolist():
            packed.writestr(record.filename, stored.read(record.filename))
    assert equal(read_checkpoint(bomb).state, STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_counters_that_were_cast_are_whole_numbers_again(tmp_path, dtype):
    counters = {"a.num_batches_tracked": torch.tensor(48), "b.num_batches_tracked": torch.tensor(2**60)}
    state = {key: value.to(dtype) for key, value in (STATE | counters).items()}
    torch.save(state, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth").state
    check_values(tmp_path / "a.pth", read)
    assert {read[key].dtype for key in STATE} == {dtype}
    beyond = torch.tensor(0 if dtype == torch.float16 else 2**60)
    assert equal({key: read[key] for key in counters}, counters | {"b.num_batches_tracked": beyond})
    assert {read[key].dtype for key in counters} == {torch.int64}


def test_a_counter_that_is_none_is_refused(tmp_path):
    torch.save({"num_batches_tracked": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "claims the shape")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**6, 10**6), r"a claims the shape \(1000000, 1000000\)"),
        (torch.tensor([1.0, torch.nan, torch.inf]), "a has 2 NaN or infinite of 3 values"),
        (torch.tensor([1.0, -torch.inf], dtype=torch.float16), "a has 1 NaN"),
        (torch.zeros(2, dtype=torch.complex64), "a is complex"),
        (torch.eye(2).to_sparse(), "a is not a dense array"),
        (torch.zeros(2, device="meta"), "a is not a dense array"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, tensor, message):
    torch.save({"a": tensor}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"epoch": 3, "history": {"loss": 1.0}}, torch.ones(2), {1: torch.ones(1)}]
)
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "holds no state_dict")


def test_two_networks_in_one_state(tmp_path):
    torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "holds a twice, once as module.a")


def test_the_folder_of_a_model_is_told(tmp_path):
    """It, or the one in the folder of a run, but not one of several."""
    run = tmp_path / "run"
    for name in ("model", "other"):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text("{}")
        save_file(STATE, run / name / "model.safetensors")
        model = re.escape(str(run / "model"))
        told = f"give {model}/model.safetensors, or no checkpoint and --model local-dir:{model} "
        refused(run / "model", told)
        refused(run, told if name == "model" else "name the file in it")


def test_torchscript_is_told(tmp_path):
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(traced, str(tmp_path / "a.pt"))
    refused(tmp_path / "a.pt", "is a TorchScript archive", "save its state_dict")


def test_what_is_no_file_of_weights(tmp_path):
    refused(tmp_path, "is a folder, not a checkpoint: name the file in it; there is none")
    (tmp_path / "last.pt").write_text("")
    refused(tmp_path, "name the file in it, such as .*last.pt")
    refused(tmp_path / "missing.pth", "no such file")
    (tmp_path / "a.txt").write_text("hello, world; this is text")
    refused(tmp_path / "a.txt", "neither a safetensors file")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(tmp_path / "a.zip", "not a whole torch file")
