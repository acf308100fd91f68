"""What goes on from a checkpoint, from which folder, and what is refused as another run."""

import os
import signal

import pytest
import torch
from command import one_line
from filelock import FileLock, Timeout
from test_train_loop import after
from train_runs import equal, tiny, weights, write_images

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.checkpoints import check_run, read_state, write_state
from lambdaresnet_zoo.tasks.train.loop import Training
from lambdaresnet_zoo.tasks.train.options import TrainOptions, read_args, resolve, write_args
from lambdaresnet_zoo.tasks.train.records import is_better
from lambdaresnet_zoo.weights.files import read_rows


@pytest.fixture
def stop(monkeypatch):
    """Have SIGTERM come in place of an update, once."""
    return lambda step: after(monkeypatch, step, lambda self: os.kill(os.getpid(), signal.SIGTERM))


def falling(monkeypatch):
    """The first epoch is the best one."""
    real = Training._end_epoch

    def worse(self, evaluate, stop):
        epoch = self.progress.step // self.plan.steps_per_epoch
        return real(self, lambda number: evaluate(number) | {"eval_top1": 90.0 - epoch}, stop)

    monkeypatch.setattr(Training, "_end_epoch", worse)


def test_a_checkpoint_of_another_folder_is_taken_over_whole(train, tmp_path, monkeypatch, stop):
    falling(monkeypatch)
    assert train("--output", tmp_path / "whole")[0] == 0
    stop(7)
    assert train("--output", tmp_path / "cut")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()}
    other = ("--resume", tmp_path / "cut" / "last.pt", "--output", tmp_path / "other")
    status, out, err = train(*other)
    assert (status, err) == (0, []) and "epoch 1" in out[-1]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "other"))
    for name in ("steps.csv", "confusion.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "other" / name).read_text()
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == before
    one_line(train(*other), "other holds a run; continue it with --resume, or give another --output")


def test_a_checkpoint_alone_goes_on_without_the_best_before(train, tmp_path, monkeypatch, stop):
    falling(monkeypatch)
    stop(7)
    assert train("--output", tmp_path / "cut")[0] == 0
    (tmp_path / "cut" / "best.pt").unlink()
    status, out, err = train("--resume", tmp_path / "cut" / "last.pt", "--output", tmp_path / "other")
    assert (status, err) == (0, []) and "epoch 2" in out[-1]


@pytest.mark.parametrize(("moment", "told"), [("check_images", "stopped at step 1; --resume"), ("export_model", "")])
def test_a_signal_before_the_first_step_and_after_the_last(train, tmp_path, monkeypatch, moment, told):
    """It is heeded once there is something to save, and what is being exported is finished."""
    from lambdaresnet_zoo.tasks.train import run

    real = getattr(run, moment)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(run, moment, signalled)
    status, _, err = train("--output", tmp_path, "--epochs", 1)
    assert status == 0 and [line[: len(told)] for line in err] == [told] * bool(told)
    assert (tmp_path / "last.pt").exists() and (tmp_path / "model").exists() == (moment == "export_model")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_not_given_any_more_makes_another_run():
    with pytest.raises(UserError, match=r"another run: b 3 there, 2 here; c there is not|c 4 there, not set here"):
        check_run("x", {"a": 1, "b": 3, "c": 4}, {"a": 1, "b": 2})
    check_run("x", {"a": 1}, {"a": 1})


@pytest.mark.parametrize(
    ("begun", "part"),
    [
        (("--layer-decay", 0.9), "layer_decay 0.9 there, not set here"),
        (("--freeze", "stem"), "freeze ['stem'] there, not set here"),
        (("--clip-grad", 1.0), "clip_grad 1.0 there, not set here"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, tuple) else "",
)
def test_options_that_are_dropped_are_told(train, tmp_path, begun, part):
    options = ("--epochs", 1, "--val-fraction", 0, "--output")
    assert train(*options, tmp_path / "begun", *begun)[0] == 0
    one_line(train(*options, tmp_path / "other", "--resume", tmp_path / "begun" / "last.pt"), part)


def test_classes_of_other_names_are_told(train, tmp_path, stop):
    """As many, but each stands for another one's images."""
    data = write_images(tmp_path / "train", 12).parent
    options = ("--val-fraction", 0, "--output", tmp_path / "run")
    stop(5)
    assert train(*options, data=data)[0] == 0
    (data / "train" / "blue").rename(data / "train" / "violet")
    one_line(train(*options, "--resume", data=data), "number 0 is 'blue' there, 'green' here; name the classes as")
    path = tmp_path / "run" / "last.pt"
    state = read_state(path)
    del state["class_names"], state["restore_lr"]  # as the version before wrote it
    write_state(path, state)
    (data / "train" / "violet").rename(data / "train" / "blue")
    assert train(*options, "--resume", data=data)[0] == 0


def test_another_batch_is_told_with_what_to_do(train, tmp_path):
    options = ("--epochs", 1, "--val-fraction", 0, "--output", tmp_path)
    assert train(*options)[0] == 0
    outcome = train(*options, "--resume", "--batch-size", 4)
    one_line(outcome, "9 images in an update, here there are 4", "as many processes", "--grad-accum-steps")
    assert "another --output" not in outcome[2][0]


def test_a_run_goes_on_as_its_folder_says(command, train, coloured, tmp_path, stop):
    """A tuple comes back from the file as a list, a whole number of epochs as it was."""
    stop(5)
    assert train("--output", tmp_path, "--set", "drop=0.1", "--model-kwargs", "img_size=(32,32)")[0] == 0
    assert command("train", "--resume", "--output", tmp_path)[0] == 0
    options = TrainOptions(model="m", output=str(tmp_path / "options"), model_kwargs={"size": (3, (4, 5))})
    (tmp_path / "options").mkdir()
    write_args(tmp_path / "options", options)
    again = resolve({"resume": "", "output": options.output, "warmup_epochs": float(options.warmup_epochs)})
    assert again.identity() == options.identity()
    assert TrainOptions(model="m", model_kwargs={"size": (3,)}).identity() != options.identity()


def test_two_runs_do_not_share_a_folder(train, tmp_path, monkeypatch):
    from lambdaresnet_zoo.tasks.train import run

    monkeypatch.setattr(run, "LOCKED", 0.1)
    name, told = tmp_path / ".last.pt.lock", f"{tmp_path} holds a run that is still going on; wait, or give another"
    held = []

    def other(self):
        lock = FileLock(name)
        with pytest.raises(Timeout):
            lock.acquire(timeout=0.1)
        held.append((tmp_path / "args.yaml").read_text())

    with FileLock(name):  # of one that has not come to its first checkpoint
        one_line(train("--output", tmp_path, "--seed", 2), told)
        assert not (tmp_path / "args.yaml").exists()
    after(monkeypatch, 2, other)
    assert train("--output", tmp_path, "--seed", 1)[0] == 0
    assert len(held) == 1 and "seed: 1\n" in held[0]
    with FileLock(name, timeout=0.1):
        one_line(train("--output", tmp_path, "--seed", 1, "--resume"), told)
        assert train("--output", tmp_path, "--dry-run")[0] == 0


def test_a_run_that_ended_meanwhile_is_not_overwritten(train, tmp_path, monkeypatch):
    from lambdaresnet_zoo.tasks.train import run

    real = run.open_data

    def late(*arguments):
        (tmp_path / "last.pt").write_bytes(b"")
        return real(*arguments)

    monkeypatch.setattr(run, "open_data", late)
    one_line(train("--output", tmp_path), "holds a run; continue it with --resume")
    assert not (tmp_path / "args.yaml").exists()


def test_a_folder_without_a_run_is_told(command, tmp_path):
    one_line(command("train", "--resume", "--output", tmp_path / "typo"), "typo holds no run to continue")


def test_what_a_killed_process_was_writing_is_cleared_away(train, tmp_path):
    (tmp_path / ".last.pt.12345.tmp").write_bytes(b"half")
    (tmp_path / ".mine.12345.tmp").write_bytes(b"a user's")
    assert train("--output", tmp_path, "--epochs", 1, "--val-fraction", 0)[0] == 0
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".mine.12345.tmp"]


def test_no_augmentation_is_what_the_option_says(train, tmp_path):
    options = ("--epochs", 1, "--val-fraction", 0, "--output")
    assert train(*options, tmp_path / "plain", "--no-aug")[0] == 0
    assert train(*options, tmp_path / "other")[0] == 0
    assert [read_args(tmp_path / name / "args.yaml")["no_aug"] for name in ("plain", "other")] == [True, False]
    losses = [read_rows(tmp_path / name / "steps.csv")[0]["loss"] for name in ("plain", "other")]
    assert losses[0] != losses[1]


def test_the_best_is_a_number():
    one, two = ({"eval_loss": value, "eval_top1": value} for value in (1.0, 2.0))
    assert is_better(one, {}, "loss") and not is_better({"eval_loss": float("nan")}, {}, "loss")
    assert is_better(one, two, "loss") and is_better(two, one, "top1") and not is_better(one, two, "top1")


def test_ties_are_settled_by_the_loss_then_by_the_later_epoch():
    high, low = ({"eval_loss": value, "eval_top1": 50.0} for value in (2.0, 1.0))
    assert is_better(low, high, "top1") and not is_better(high, low, "top1")
    assert is_better(low, dict(low), "top1") and is_better(low, dict(low), "loss")
    assert is_better(high, {"eval_top1": 50.0}, "top1")  # of a state that does not hold it


@pytest.mark.parametrize("known", [True, False])
def test_a_tie_is_settled_in_a_run_that_goes_on_too(train, tmp_path, monkeypatch, stop, known):
    """Top-1 of every epoch is the same, and the loss of the second is the lowest."""
    real = Training._end_epoch

    def tied(self, evaluate, stop):
        figures = {"eval_top1": 50.0, "eval_loss": [4.0, 1.0, 2.0][self.progress.step // 4 - 1]}
        return real(self, lambda number: evaluate(number) | figures, stop)

    monkeypatch.setattr(Training, "_end_epoch", tied)
    assert train("--output", tmp_path / "whole")[0] == 0
    stop(10)
    assert train("--output", tmp_path / "cut")[0] == 0
    path = tmp_path / "cut" / "last.pt"
    state = read_state(path)
    assert (state["progress"]["best"]["epoch"], state["progress"]["best"]["eval_loss"]) == (2, 1.0)
    if not known:  # an older state
        del state["progress"]["best"]["eval_loss"]
        write_state(path, state)
    status, out, _ = train("--output", tmp_path / "cut", "--resume")
    assert status == 0 and f"epoch {2 if known else 3};" in out[-1]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == known


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--seed", 2**32), ("--seed 4294967296",)),
        (("--val-fraction", 0.2, "--val-split", "val"), ("--val-fraction 0.2 and --val-split",)),
    ],
    ids=["seed", "validation"],
)
def test_what_cannot_be_is_one_line(train, tmp_path, arguments, parts):
    one_line(train("--output", tmp_path, *arguments), *parts)


def test_one_image_at_a_time_is_told(train, tmp_path):
    """Where batch norm has a map of one pixel left; known at the first step."""
    status, _, err = train("--output", tmp_path, "--batch-size", 1)
    told = "--batch-size 1: batch norm takes more than one value of each channel; give 2, or --freeze-bn"
    assert (status, err) == (2, [f"error: {told}"])


@pytest.mark.parametrize("classes", [3, 5])
def test_timms_own_models_start_from_a_file_too(command, coloured, tmp_path, classes):
    import timm

    torch.manual_seed(0)
    start = timm.create_model("test_resnet", num_classes=classes)
    torch.save({"state_dict": start.state_dict()}, tmp_path / "start.pth")
    options = (*tiny(coloured), "--model", "test_resnet", "--initial-checkpoint", tmp_path / "start.pth")
    options = (*options, "--recipe", "", "--epochs", 1, "--lr", 1e-9, "--weight-decay", 0, "--no-aug", "--freeze-bn")
    status, out, err = command("train", *options, "--output", tmp_path / "run")
    assert (status, err) == (0, []), out
    found = weights(tmp_path / "run")
    for key, value in start.state_dict().items():
        if not key.startswith("fc.") or classes == 3:
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    assert found["fc.weight"].shape[0] == 3
