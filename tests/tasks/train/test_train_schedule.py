"""Schedules of the learning rate: timm's, for as many epochs as timm says."""

import math
import os
import signal

import pytest
import torch
from command import one_line
from test_train_loop import after
from train_runs import equal, weights

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.train.data import TrainData
from lambdaresnet_zoo.tasks.train.options import TrainOptions
from lambdaresnet_zoo.tasks.train.plan import SCHEDULES, make_plan, make_schedule
from lambdaresnet_zoo.weights.files import read_rows


def rates(folder):
    return [float(row["lr"]) for row in read_rows(folder / "steps.csv")]


def test_the_rate_is_timms(train, tmp_path):
    """Update s has the rate that timm's schedule gives at s."""
    from timm.scheduler import CosineLRScheduler

    options = ("--warmup-epochs", 1, "--epochs", 3, "--lr", 0.1, "--opt", "momentum", "--val-fraction", 0)
    assert train("--output", tmp_path, *options)[0] == 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = CosineLRScheduler(optimizer, t_initial=12, warmup_t=4, warmup_lr_init=1e-5, t_in_epochs=False)
    expected = []
    for step in range(12):
        schedule.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(tmp_path) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("noise", [(), ("--set", "lr_noise=0.1,0.9")], ids=["", "noise"])
def test_plateau_goes_on_where_it_was(train, tmp_path, monkeypatch, noise):
    options = ("--sched", "plateau", "--patience-epochs", 0, "--decay-rate", 0.1, "--epochs", 4, *noise, "--output")
    assert train(*options, tmp_path / "whole")[0] == 0
    after(monkeypatch, 10, lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*options, tmp_path / "cut")[0] == 0
    assert train(*options, tmp_path / "cut", "--resume")[0] == 0
    assert rates(tmp_path / "whole") == rates(tmp_path / "cut")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_plateau_without_figures_looks_at_the_training_loss(train, tmp_path):
    options = ("--sched", "plateau", "--patience-epochs", 0, "--warmup-epochs", 0, "--epochs", 4, "--opt", "adamw")
    options = (*options, "--lr", 0.003, "--no-aug", "--val-fraction", 0)
    assert train("--output", tmp_path, *options)[0] == 0
    losses = [float(row["train_loss"]) for row in read_rows(tmp_path / "summary.csv")]
    assert losses == sorted(losses, reverse=True), "the premise: it falls"
    assert set(rates(tmp_path)) == {0.003}


def test_plateau_looks_at_figures_alone_where_there_are_some(train, tmp_path, monkeypatch):
    """Not at the training loss in the epochs between."""
    from lambdaresnet_zoo.tasks.train import run

    figures = iter([50.0, 60.0, 40.0])
    real = run.figures
    monkeypatch.setattr(run, "figures", lambda found: real(found) | {"eval_top1": next(figures)})
    options = ("--sched", "plateau", "--patience-epochs", 0, "--warmup-epochs", 0, "--decay-rate", 0.1)
    assert train("--output", tmp_path, *options, "--epochs", 6, "--val-interval", 2, "--lr", 0.01)[0] == 0
    assert set(rates(tmp_path)) == {0.01}  # the figure that fell is the last


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 10),
        ({"lr_cycle_limit": 2}, 20),
        ({"cooldown_epochs": 3}, 13),
        ({"warmup_prefix": True}, 15),
        ({"sched": "wsd"}, 10),
        ({"sched": "constant"}, 10),
        ({"sched": "plateau"}, 10),
        ({"sched": "none", "epochs": 3}, 3),
    ],
    ids=str,
)
def test_a_run_is_as_long_as_timm_says(options, epochs):
    data = TrainData("d", "folder", ("a", "b"), None, None, 100)
    chosen = TrainOptions(**{"epochs": 10, "batch_size": 10, **options})
    assert make_plan(chosen, data, 1).epochs == epochs


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_timms(name):
    """Each that timm knows can be had with the defaults, and gives rates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, epochs = make_schedule(optimizer, TrainOptions(sched=name, epochs=20, warmup_epochs=2), 5)
    for epoch in range(epochs):
        schedule.step(epoch, 1.0)
        schedule.step_update(5 * epoch)
        assert math.isfinite(optimizer.param_groups[0]["lr"])


def test_an_unknown_schedule_is_one_line(train, tmp_path):
    one_line(train("--output", tmp_path, "--sched", "cosin"), "--sched cosin is no schedule", "cosine", "rsqrt", "none")
    with pytest.raises(UserError, match=r"--warmup-epochs 5 \(the default\) leave nothing of --epochs 5"):
        make_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), TrainOptions(epochs=5), 4)
