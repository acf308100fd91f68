"""The run: it learns, resumes to the bit from any step, stops when asked, and tells what goes wrong."""

import math
import os
import resource
import signal
import time

import pytest
import torch
from command import one_line
from train_runs import equal, finish, start, tiny, weights

from lambdaresnet_zoo.tasks.train import loop
from lambdaresnet_zoo.weights.files import read_rows

ANEW = "begin another --output with a lower --lr, or with --clip-grad 1"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
RANDOM = (
    "--deterministic", "--model-ema", "--model-ema-warmup", "--mixup", 0.2, "--cutmix", 0.5, "--drop", 0.1,
    "--drop-path", 0.1, "--reprob", 0.3, "--aa", "rand-m5-n2", "--batch-size", 8, "--clip-grad", 1.0,
)  # fmt: skip


def after(monkeypatch, step, act):
    """Do something in place of an update, once."""
    real, calls = loop.Training._update, []

    def update(self, *args):
        calls.append(1)
        if len(calls) == step:
            act(self)
        return real(self, *args)

    monkeypatch.setattr(loop.Training, "_update", update)
    return calls


def test_it_learns_and_leaves_what_it_is(train, tmp_path):
    status, out, err = train("--output", tmp_path, "--opt", "adamw", "--lr", 0.01, "--epochs", 8, "--no-aug")
    assert (status, err) == (0, [])
    rows = read_rows(tmp_path / "summary.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["eval_top1"]) for row in rows) > 60
    steps = read_rows(tmp_path / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 33))
    first = [float(row["loss"]) for row in steps[:4]]
    assert float(rows[0]["train_loss"]) == pytest.approx(sum(first) / 4, rel=1e-5)
    for name in ("args.yaml", "best.pt", "last.pt", "curves.png", "confusion.png", "confusion.csv"):
        assert (tmp_path / name).stat().st_size > 40
    best = max(rows, key=lambda row: float(row["eval_top1"]))
    counts = [[int(row[name]) for name in ("blue", "green", "red")] for row in read_rows(tmp_path / "confusion.csv")]
    assert sum(map(sum, counts)) == 12
    right = sum(counts[number][number] for number in range(3))
    assert 100 * right / 12 == pytest.approx(float(best["eval_top1"]), abs=1e-3)
    assert f"top-1 {100 * right / 12:.2f} %" in out[-1] and out[-1].endswith(f"local-dir:{tmp_path / 'model'}")


def test_each_epoch_ends_with_a_row_of_its_own(train, tmp_path):
    """However few its steps; a row is of the steps since the one before."""
    for name, interval in (("every", 1), ("third", 3), ("never", 50)):
        assert train("--output", tmp_path / name, "--epochs", 2, "--log-interval", interval)[0] == 0
    every, third, never = (read_rows(tmp_path / name / "steps.csv") for name in ("every", "third", "never"))
    assert [int(row["step"]) for row in third] == [3, 4, 6, 8]
    assert [int(row["step"]) for row in never] == [4, 8]
    losses = [float(row["loss"]) for row in every]
    assert float(never[1]["loss"]) == pytest.approx(sum(losses[4:]) / 4, rel=1e-5)
    assert float(third[2]["loss"]) == pytest.approx(sum(losses[4:6]) / 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_ends_as_an_unstopped_one(train, tmp_path, monkeypatch, workers):
    options = (*RANDOM, "--workers", workers, "--output")
    assert train(*options, tmp_path / "whole")[0] == 0
    calls = after(monkeypatch, 7, lambda self: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = train(*options, tmp_path / "cut")
    assert status == 0
    assert err == [f"stopped at step 7; --resume continues from {tmp_path / 'cut' / 'last.pt'}"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not (tmp_path / "cut" / "model").exists()
    one_line(train(*options, tmp_path / "cut"), "holds a run; continue it with --resume")
    one_line(train(*options, tmp_path / "cut", "--resume", "--seed", 1), "is of another run: seed 42 there, 1 here")
    assert train(*options, tmp_path / "cut", "--resume")[0] == 0
    assert len(calls) == 12
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    for name in ("steps.csv", "confusion.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.probe"))


def test_the_folder_of_a_run_is_enough_to_continue_it(train, command, tmp_path, monkeypatch):
    after(monkeypatch, 6, lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert train("--output", tmp_path, "--checkpoint-steps", 5)[0] == 0
    status, out, err = command("train", "--resume", "--output", tmp_path)
    assert (status, err) == (0, []) and "continues from step 6 of 12" in out
    one_line(command("train", "--resume", tmp_path / "none.pt", "--output", tmp_path, "--model", "test_lambdaresnet"))


def test_a_signal_during_evaluation_saves_and_goes_on_with_it(train, tmp_path, monkeypatch):
    from lambdaresnet_zoo.tasks import validate

    assert train("--output", tmp_path / "whole")[0] == 0
    real, calls = validate._Loop.step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return real(self, *args)

    monkeypatch.setattr(validate._Loop, "step", step)
    status, _, err = train("--output", tmp_path / "cut")
    assert status == 0 and err[0].startswith("stopped at step 4;")
    assert train("--output", tmp_path / "cut", "--resume")[0] == 0
    whole, cut = (read_rows(tmp_path / name / "summary.csv") for name in ("whole", "cut"))
    assert [row | {"seconds": 0} for row in whole] == [row | {"seconds": 0} for row in cut]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_sigkill_at_any_moment(coloured, tmp_path, delay):
    """As the machine ends it: no handler runs; the resumed run ends with the same bits."""
    options = (*tiny(coloured), *RANDOM, "--workers", 1, "--checkpoint-steps", 1, "--epochs", 6, "--output")
    whole = start(*options, tmp_path / "whole")
    cut = start(*options, tmp_path / "cut")
    last = tmp_path / "cut" / "last.pt"
    while not last.exists() and cut.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    cut.kill()
    finish(cut)
    assert cut.returncode == -signal.SIGKILL
    state = torch.load(last, weights_only=True)
    assert 0 < state["progress"]["step"] < 24
    again = start(*options, tmp_path / "cut", "--resume")
    assert finish(again)[0] == 0 and finish(whole)[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_resume_before_the_first_checkpoint_begins(train, tmp_path):
    status, _, err = train("--output", tmp_path, "--resume", "--epochs", 1)
    assert status == 0 and err == [f"no checkpoint in {tmp_path} yet: the run begins"]


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(train, tmp_path, monkeypatch):
    after(monkeypatch, 7, lambda self: self.model.head.fc.weight.data.fill_(math.nan))
    status, _, err = train("--output", tmp_path, "--checkpoint-steps", 2, "--sched", "none")
    assert status == 1
    good = f"the last good checkpoint: step 6 in {tmp_path / 'last.pt'}"
    assert err == [f"error: the loss is no number at step 7, learning rate 0.05; {good}; {ANEW}"]
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 6 and all(value.isfinite().all() for value in state["model"].values())


def refuse(*names):
    raise PermissionError(1, "no links here")


def last_update(monkeypatch, step):
    """The weights become so large in an update that the network's outputs are no numbers."""
    real = loop.Training._update

    def update(self, *args):
        real(self, *args)
        if self.progress.step + 1 == step:
            self.model.head.fc.weight.data.fill_(3e38)

    monkeypatch.setattr(loop.Training, "_update", update)


@pytest.mark.parametrize("links", [True, False])
def test_an_evaluation_without_numbers_is_not_exported(train, tmp_path, monkeypatch, links):
    options = ("--sched", "none", "--output")
    assert train(*options, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patched:
        last_update(patched, 12)
        if not links:
            patched.setattr(os, "link", refuse)
        status, _, err = train(*options, tmp_path / "run")
    good = f"the last good checkpoint: step 8 in {tmp_path / 'run' / 'last.pt'}"
    told = "the evaluation's loss is no number after step 12, learning rate 0.05"
    assert (status, err) == (1, [f"error: {told}; {good}; {ANEW}"])
    assert not (tmp_path / "run" / "model").exists() and len(read_rows(tmp_path / "run" / "summary.csv")) == 2
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"]["step"] == 8
    assert train(*options, tmp_path / "run", "--resume")[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert not (tmp_path / "run" / ".last.pt.before").exists()


def test_a_first_evaluation_without_numbers_leaves_no_checkpoint(train, tmp_path):
    options = ("--output", tmp_path, "--batch-size", 36, "--epochs", 1, "--warmup-epochs", 0)
    status, _, err = train(*options, "--lr", 1e38)
    told = "the evaluation's loss is no number after step 1, learning rate 1e+38"
    assert (status, err) == (1, [f"error: {told}; the last good checkpoint: none yet; {ANEW}"])
    assert train(*options)[0] == 0


def test_statistics_that_are_no_numbers_are_not_saved(train, tmp_path, monkeypatch):
    """Training normalises by the batch, so its loss does not show them."""
    after(monkeypatch, 4, lambda self: self.model.stem.conv1.bn.running_var.fill_(math.nan))
    status, _, err = train("--output", tmp_path, "--val-fraction", 0)
    assert status == 1 and err[0].startswith("error: the weights are no numbers after step 4; ")


def test_ctrl_c_says_how_to_go_on(train, tmp_path, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    after(monkeypatch, 6, interrupt)
    status, _, err = train("--output", tmp_path)
    assert status == 130 and err == ["interrupted at step 5; --resume continues from step 4"]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(train, tmp_path):
    assert train("--output", tmp_path, "--epochs", 1, "--val-fraction", 0)[0] == 0
    before = (tmp_path / "last.pt").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        (tmp_path / "last.pt").rename(tmp_path / "kept.pt")
        outcome = train("--output", tmp_path, "--epochs", 1, "--val-fraction", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert outcome[0] == 2 and len(outcome[2]) == 1 and "last.pt cannot be written" in outcome[2][0], outcome
    assert "--resume" in outcome[2][0]
    assert (tmp_path / "kept.pt").read_bytes() == before and not (tmp_path / "last.pt").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_to_is_one_line(train, tmp_path):
    (tmp_path / "file").write_text("")
    one_line(train("--output", tmp_path / "file" / "run"), "--output", "cannot be written: Not a directory")


def test_a_damaged_checkpoint_is_one_line(train, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 not much")
    one_line(train("--output", tmp_path, "--resume"), "last.pt cannot be read as a checkpoint")


def test_passes_add_up_to_an_update(train, tmp_path):
    """Where nothing depends on the batch but its mean, two passes are one."""
    options = ("--no-aug", "--freeze-bn", "--epochs", 2, "--smoothing", 0.1, "--opt", "momentum", "--output")
    assert train(*options, tmp_path / "one", "--batch-size", 12)[0] == 0
    status, out, _ = train(*options, tmp_path / "two", "--batch-size", 6, "--grad-accum-steps", 2)
    assert status == 0 and "2 epochs of 3 steps of 12 images (6 x 1 process(es) x 2)" in out[2]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", ["norm", "value", "agc"])
def test_gradients_are_clipped(train, tmp_path, monkeypatch, clip):
    norms, counts = [], []
    real = loop.dispatch_clip_grad

    def clipped(parameters, value, mode):
        real(parameters, value=value, mode=mode)
        counts.append(len(parameters))
        norms.append(math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters)))

    monkeypatch.setattr(loop, "dispatch_clip_grad", clipped)
    options = ("--epochs", 1, "--clip-grad", 0.001, "--clip-mode", clip, "--val-fraction", 0)
    assert train("--output", tmp_path, *options)[0] == 0
    assert len(norms) == 4 and (clip == "agc" or max(norms) < 1)
    assert clip != "norm" or max(norms) <= 0.001 * 1.001
    every = len(weights(tmp_path)) - sum(name.endswith(BUFFERS) for name in weights(tmp_path))
    assert set(counts) == {every - 2 if clip == "agc" else every}  # agc leaves the classifier, as timm's train.py


@pytest.mark.parametrize(
    "options",
    [
        ("--amp", "--amp-dtype", "bfloat16", "--channels-last"),
        ("--amp", "--amp-dtype", "float16"),
        ("--grad-checkpointing", "--bce-loss", "--cutmix", 1.0, "--batch-size", 8),
        ("--train-crop-mode", "pad", "--train-crop-padding", 4),
        ("--sched", "plateau", "--patience-epochs", 0),
        ("--sched", "multistep", "--decay-milestones", 1, 2, "--no-sched-on-updates"),
        ("--tensorboard",),
    ],
    ids=lambda options: options[0].strip("-") + options[-1 if len(options) > 1 else 0].__str__()[:8],
)
def test_options(train, tmp_path, options):
    status, _, err = train("--output", tmp_path, "--epochs", 2, *options)
    assert (status, err) == (0, [])
    assert all(math.isfinite(float(row["train_loss"])) for row in read_rows(tmp_path / "summary.csv"))
    if options == ("--tensorboard",):
        assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_compiled(train, tmp_path):
    assert train("--output", tmp_path / "plain", "--epochs", 1, "--no-aug")[0] == 0
    assert train("--output", tmp_path / "eager", "--epochs", 1, "--no-aug", "--torchcompile", "aot_eager")[0] == 0
    plain, eager = (read_rows(tmp_path / name / "steps.csv") for name in ("plain", "eager"))
    for one, two in zip(plain, eager, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-3)
    one_line(train("--output", tmp_path / "none", "--torchcompile", "magic"), "magic is no backend")
