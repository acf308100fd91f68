"""Several processes on the CPU: the same curve as one, alone or sharded, and what happens when one is lost."""

import os
import re
import signal
import subprocess
import time

import pytest
import torch
from train_runs import environment, equal, finish, start, tiny, weights

from lambdaresnet_zoo.tasks.train.wrapping import synchronise_norms
from lambdaresnet_zoo.weights.files import read_rows

SAME = (
    "--no-aug", "--smoothing", 0, "--opt", "momentum", "--lr", 0.02, "--epochs", 7, "--val-fraction", 0,
    "--deterministic",
)  # fmt: skip


def losses(folder):
    return [float(row["loss"]) for row in read_rows(folder / "steps.csv")]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_batch(train, coloured, tmp_path):
    assert train(*SAME, "--batch-size", 12, "--output", tmp_path / "one")[0] == 0
    half = (*tiny(coloured), *SAME, "--batch-size", 6, "--sync-bn")
    for name, more in (("ddp", ()), ("fsdp", ("--fsdp",))):
        status, out, err = finish(start(*half, *more, "--output", tmp_path / name, processes=2))
        assert status == 0, err
        assert out.count("7 epochs of 3 steps of 12 images (6 x 2 process(es) x 1)") == 1
        assert len(losses(tmp_path / name)) == 21
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-4), name
        one, other = weights(tmp_path / "one"), weights(tmp_path / name)
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=1e-2, atol=1e-3)
    # Without it the batches are normalised apart, and the curves part.
    apart = [option for option in half if option != "--sync-bn"]
    assert finish(start(*apart, "--output", tmp_path / "apart", processes=2))[0] == 0
    assert losses(tmp_path / "apart") != pytest.approx(losses(tmp_path / "one"), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_resume_to_the_bit(coloured, tmp_path, fsdp):
    """With average, mixing and evaluation; the first of two is asked to stop, and both do."""
    options = (
        *tiny(coloured), "--deterministic", "--model-ema", "--mixup", 0.2, "--batch-size", 4, "--epochs", 4,
        *(("--fsdp",) if fsdp else ("--freeze-epochs", 1)), "--output",
    )  # fmt: skip
    whole = finish(start(*options, tmp_path / "whole", processes=2))
    assert whole[0] == 0, whole[2]
    assert whole[1].count("trained 16 steps") == 1 and "on 12 images" in whole[1]
    cut = start(*options, tmp_path / "cut", processes=2)
    last = tmp_path / "cut" / "last.pt"
    while not last.exists() and cut.poll() is None:
        time.sleep(0.01)
    os.kill(workers(cut.pid)[0], signal.SIGTERM)
    status, _, err = finish(cut)
    assert status == 0 and err.count("--resume continues from") == 1, err
    assert torch.load(last, weights_only=True)["progress"]["step"] < 16
    again = finish(start(*options, tmp_path / "cut", "--resume", processes=2))
    assert again[0] == 0, again[2]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def workers(launcher):
    """The processes that torchrun started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout
    return sorted(int(number) for number in found.split())


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_the_cause(coloured, tmp_path):
    options = (*tiny(coloured), "--batch-size", 4, "--epochs", 2000, "--val-fraction", 0, "--output", tmp_path)
    run = start(*options, processes=2)
    while not (tmp_path / "last.pt").exists() and run.poll() is None:
        time.sleep(0.05)
    first, second = workers(run.pid)
    os.kill(second, signal.SIGKILL)
    begun = time.monotonic()
    status, _, err = finish(run, timeout=60)
    assert time.monotonic() - begun < 60 and status != 0
    assert "Signal 9 (SIGKILL)" in err and f"PID {second}" in err  # torchrun's own word on it
    told = [line for line in err.splitlines() if line.startswith("error: another process of the run has stopped")]
    assert len(told) <= 1 and (not told or re.search(r"--resume continues from step \d+", told[0]))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["progress"]["step"] >= 4
    assert not [pid for pid in (first, second) if os.path.exists(f"/proc/{pid}")]


@pytest.mark.slow
def test_what_stops_two_processes_is_told_once(coloured, tmp_path):
    status, out, err = finish(start(*tiny(coloured), "--output", tmp_path, "--batch-size", 40, processes=2))
    assert status != 0 and err.count("an update takes 80 images") == 1 and "has 36" in err and not out


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_an_evaluation_without_numbers_ends_two_processes(coloured, tmp_path, fsdp):
    options = ("--batch-size", 18, "--epochs", 1, "--warmup-epochs", 0, "--lr", 1e38, *(("--fsdp",) if fsdp else ()))
    status, _, err = finish(start(*tiny(coloured), *options, "--output", tmp_path, processes=2))
    assert status != 0 and err.count("error: the evaluation's loss is no number after step 1") == 1, err
    assert err.count("Traceback") == 1 and "ChildFailedError" in err  # torchrun's own
    assert "another process" not in err
    assert not (tmp_path / "model").exists() and not (tmp_path / "last.pt").exists()


NORM = """
import sys, torch, torch.distributed as dist
from lambdaresnet_zoo.tasks.train.wrapping import synchronise_norms
import timm
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
whole = timm.layers.BatchNormAct2d(5).double()
with torch.no_grad():
    whole.weight.uniform_(), whole.bias.normal_()
own = timm.layers.BatchNormAct2d(5).double()
own.load_state_dict(whole.state_dict())
own = synchronise_norms(own, torch.device("cpu"))
x = torch.randn(6, 5, 4, 3, dtype=torch.float64).mul_(3).add_(2).requires_grad_()
part = x.detach()[3 * rank : 3 * rank + 3].requires_grad_()
scale = torch.randn(6, 5, 4, 3, dtype=torch.float64)
(whole(x) * scale).sum().backward()
(own(part) * scale[3 * rank : 3 * rank + 3]).sum().backward()
for parameter in own.parameters():
    dist.all_reduce(parameter.grad)
torch.testing.assert_close(part.grad, x.grad[3 * rank : 3 * rank + 3])
for one, two in zip(whole.parameters(), own.parameters()):
    torch.testing.assert_close(two.grad, one.grad)
for key, value in whole.state_dict().items():
    torch.testing.assert_close(own.state_dict()[key], value)
own.eval(), whole.eval()
torch.testing.assert_close(own(x), whole(x))
half = synchronise_norms(torch.nn.BatchNorm2d(5), torch.device("cpu"))
exact = torch.nn.BatchNorm2d(5)
x = (3 * torch.randn(6, 5, 40, 30) + 20).bfloat16()
with torch.autocast("cpu", torch.bfloat16):
    found = half(x[3 * rank : 3 * rank + 3])
assert found.dtype is torch.bfloat16
torch.testing.assert_close(found.float(), exact(x.float())[3 * rank : 3 * rank + 3], rtol=1e-2, atol=1e-2)
torch.testing.assert_close(half.running_var, exact.running_var)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_batch_norm_over_two_processes_is_that_of_one(tmp_path):
    """Outputs, gradients and statistics of timm's batch norm over the whole batch, in float64."""
    (tmp_path / "norm.py").write_text(NORM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "norm.py")]
    import sys

    done = subprocess.run([sys.executable, *launcher], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_batch_norm_is_synchronised():
    import timm

    model = synchronise_norms(timm.create_model("test_lambdaresnet"), torch.device("cpu"))
    kinds = {type(module).__mro__[1].__name__ for module in model.modules() if hasattr(module, "running_mean")}
    assert kinds == {"_SyncNorm"}
    assert timm.create_model("test_lambdaresnet").state_dict().keys() == model.state_dict().keys()
