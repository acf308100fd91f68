"""Training detectors: the recipe, resuming to the bit, stopping, divergence, several processes."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from coco_sets import TINY, TINY_RUN, write_set
from command import one_line
from safetensors.torch import load_file

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.detect import train as training
from lambdaresnet_zoo.tasks.detect.options import TrainOptions
from lambdaresnet_zoo.tasks.detect.recipe import RECIPES, read_recipe
from lambdaresnet_zoo.tasks.detect.run import resolve_recipe
from lambdaresnet_zoo.weights.files import read_rows

ARGUMENTS = ("detect", "train", *TINY_RUN, "--batch-size", 2, "--warmup-steps", 2, "--log-steps", 1)


def test_the_papers_recipe():
    paper = RECIPES["paper"]
    assert (paper.steps, paper.batch_size, paper.image_size, paper.scale) == (130_000, 256, 1024, (0.1, 2.0))
    assert (paper.lr, paper.warmup_steps, paper.weight_decay, paper.norm) == (0.32, 1000, 4e-5, "sync")
    assert (paper.decay_at, paper.decay_rate) == ((0.9, 0.95, 0.975), 0.1)
    half = resolve_recipe(TrainOptions("a", "b", batch_size=16, grad_accum_steps=2), processes=4)
    assert (half.batch_size, half.lr) == (128, 0.16)
    assert resolve_recipe(TrainOptions("a", "b", batch_size=16, lr=0.1), processes=4).lr == 0.1


def test_a_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"base": "overfit", "steps": 9, "scale": [0.5, 1.5]}')
    assert read_recipe(str(path)) == replace(RECIPES["overfit"], steps=9, scale=(0.5, 1.5))
    for text, message in (("{", "is no recipe"), ('{"base": "x"}', "is no recipe"), ('{"stops": 1}', "has no 'stops'")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_recipe(str(path))


def test_the_rate_rises_and_falls(command, coco, tmp_path):
    status, _, err = command(
        *ARGUMENTS, *coco, "--output", tmp_path, "--steps", 20, "--lr", 0.001, "--warmup-steps", 4, "--image-size", 64
    )
    assert status == 0 and err == []
    rates = [float(row["lr"]) for row in read_rows(tmp_path / "log.csv")]
    expected = [0.00025, 0.0005, 0.00075] + [0.001] * 14 + [0.0001] * 2 + [0.00001]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn", "retinanet"])
def test_each_detector_trains(command, coco, tmp_path, kind):
    status, out, err = command(
        *ARGUMENTS, *coco, "--output", tmp_path, "--steps", 3, "--detector", kind,
        "--val-annotations", coco[1], "--amp", "--amp-dtype", "bfloat16", "--device", "cpu",
    )  # fmt: skip
    assert status == 0 and err == []
    assert out[0].startswith(f"{kind} on test_lambdaresnet: ") and "GFLOPs at 96x96" in out[0]
    assert out[1] == "4 images, 2 categories; 3 steps of 2"
    row = read_rows(tmp_path / "results.csv")[0]
    assert row["step"] == "3" and ("mask_ap" in row) == (kind == "mask_rcnn")
    losses = [sum(float(value) for key, value in row.items() if key.startswith(("loss", "cl", "bb")))
              for row in read_rows(tmp_path / "log.csv")]  # fmt: skip
    assert len(losses) == 3 and all(map(math.isfinite, losses))


def test_batch_norm_keeps_its_statistics_from_a_step_on(command, coco, tmp_path, monkeypatch):
    recipe = tmp_path / "fixed.json"
    recipe.write_text(json.dumps(json.loads(Path(TINY).read_text()) | {"fix_norm_at": 0.5}))
    real, changed = training.Training._step, []

    def step(self, *args):
        before = self.model.backbone.body.stem_conv1.bn.running_mean.clone()
        losses = real(self, *args)
        changed.append(not torch.equal(before, self.model.backbone.body.stem_conv1.bn.running_mean))
        return losses

    monkeypatch.setattr(training.Training, "_step", step)
    assert command(*ARGUMENTS, *coco, "--steps", 4, "--output", tmp_path / "run", "--recipe", recipe)[0] == 0
    assert changed == [True, True, False, False]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_stopped_run_ends_as_an_unstopped_one(command, coco, tmp_path, monkeypatch):
    arguments = (*ARGUMENTS, *coco, "--steps", 6, "--output")
    assert command(*arguments, tmp_path / "whole")[0] == 0
    step, calls = training.Training._step, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(training.Training, "_step", stopped)
    status, _, err = command(*arguments, tmp_path / "cut")
    assert status == 0
    assert err == [f"stopped at step 4; --resume continues from {tmp_path / 'cut' / 'last.pt'}"]
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    one_line(command(*arguments, tmp_path / "cut"), "holds a run; continue it with --resume")
    one_line(command(*arguments, tmp_path / "cut", "--resume", "--seed", 1), "is of another run: seed 42 there, 1 here")
    assert command(*arguments, tmp_path / "cut", "--resume")[0] == 0
    assert len(calls) == 6
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert read_rows(tmp_path / "whole" / "log.csv") == read_rows(tmp_path / "cut" / "log.csv")
    assert not list(tmp_path.rglob("*.tmp"))


def other_category(content):
    content["categories"][0] = {"id": 9, "name": "other"}
    for found in content["annotations"]:
        found["category_id"] = 9 if found["category_id"] == 7 else 3


def other_images(content):
    for entry, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        for one in entry:
            one[key] += 1


@pytest.fixture(scope="module")
def begun(tmp_path_factory, coco):
    """The folder of a run of one step."""
    from lambdaresnet_zoo.cli import main

    folder = tmp_path_factory.mktemp("begun")
    assert main([str(value) for value in (*ARGUMENTS, *coco, "--steps", 1, "--output", folder)]) == 0
    return folder


OTHER_RUNS = {
    "category": (other_category, (), "category 9 not set there, other here; category 7 red there, not set here"),
    "images": (other_images, (), "image_ids "),
    "limit": (None, ("--limit", 2), "images 4 there, 2 here; image_ids "),
    "empty": (None, ("--keep-empty",), "keep_empty False there, True here"),
    "freeze": (None, ("--freeze", "stem", "c2"), "freeze nothing there, c2 stem here"),
    "backbone": (None, ("--model-kwargs", "act_layer=silu"), "model_kwargs act_layer not set there, 'silu' here"),
    "recipe": (None, ("--lr", 0.5), "is of another run: recipe lr "),
}


@pytest.mark.parametrize("kind", OTHER_RUNS)
def test_another_run_is_not_continued(command, begun, coco, tmp_path, kind):
    change, arguments, message = OTHER_RUNS[kind]
    if change:
        annotations, images = write_set(tmp_path, change=change)
        coco = ("--annotations", annotations, "--images", images)
    before = (begun / "detector.json").read_text()
    again = (*ARGUMENTS, *coco, "--steps", 1, "--output", begun, "--resume", *arguments)
    one_line(command(*again), "last.pt is of another run: ", message, "give another --output")
    assert (begun / "detector.json").read_text() == before


def test_a_run_of_the_version_before_is_continued(command, begun, coco, tmp_path):
    state = torch.load(begun / "last.pt", weights_only=True)
    for key in ("category", "image_ids", "keep_empty", "model_kwargs", "freeze"):
        del state[key]
    torch.save({**state, "categories": 2}, tmp_path / "last.pt")
    again = (*ARGUMENTS, *coco, "--steps", 1, "--output", tmp_path, "--resume")
    one_line(command(*again, "--freeze", "c2"), "last.pt does not fit this network: ")
    one_line(command(*again, "--seed", 1), "is of another run: seed 42 there, 1 here; give")
    assert command(*again)[0] == 0


def test_passes_of_half_a_batch_add_up(command, coco, tmp_path, monkeypatch):
    """Where nothing depends on the batch, two passes are one; here that holds for the samples that are seen."""
    seen = []
    real = training.Training._step

    def step(self, network, batches):
        seen.append(self.recipe.batch_size)
        return real(self, network, batches)

    monkeypatch.setattr(training.Training, "_step", step)
    status, out, _ = command(*ARGUMENTS, *coco, "--steps", 2, "--output", tmp_path, "--grad-accum-steps", 2)
    assert status == 0 and seen == [4, 4] and "2 steps of 4" in out[1]


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(command, coco, tmp_path, monkeypatch):
    step, calls = training.Training._step, []

    def diverging(self, *args):
        calls.append(1)
        losses = step(self, *args)
        return dict.fromkeys(losses, math.nan) if len(calls) == 4 else losses

    monkeypatch.setattr(training.Training, "_step", diverging)
    status, _, err = command(*ARGUMENTS, *coco, "--steps", 6, "--output", tmp_path, "--checkpoint-steps", 2)
    assert status == 1
    assert err == [f"error: the loss is nan at step 4; the last good checkpoint: step 2 in {tmp_path / 'last.pt'}"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2


def test_weights_that_are_no_numbers_are_not_saved(command, coco, tmp_path, monkeypatch):
    real = training.Training._step

    def step(self, *args):
        losses = real(self, *args)
        if self.step == 3:
            next(self.model.parameters()).data.fill_(math.nan)
        return losses

    monkeypatch.setattr(training.Training, "_step", step)
    status, _, err = command(*ARGUMENTS, *coco, "--steps", 6, "--output", tmp_path, "--checkpoint-steps", 2)
    good = f"the last good checkpoint: step 2 in {tmp_path / 'last.pt'}"
    assert (status, err) == (1, [f"error: the weights are no numbers after step 4; {good}"])


def test_weights_do_not_take_a_loss_that_is_no_number(coco, tmp_path, command, monkeypatch):
    """The network's own loss is NaN: no update is made with it."""
    from torchvision.models.detection import roi_heads

    real = roi_heads.fastrcnn_loss
    monkeypatch.setattr(roi_heads, "fastrcnn_loss", lambda *args: tuple(loss * math.nan for loss in real(*args)))
    states = []
    real_step = training.Training._step

    def step(self, *args):
        before = {key: value.clone() for key, value in self.model.named_parameters()}
        losses = real_step(self, *args)
        states.append(all(torch.equal(value, before[key]) for key, value in self.model.named_parameters()))
        return losses

    monkeypatch.setattr(training.Training, "_step", step)
    status, _, err = command(*ARGUMENTS, *coco, "--steps", 2, "--output", tmp_path)
    assert status == 1 and "at step 1; the last good checkpoint: none yet" in err[0]
    assert states == [True]


def test_ctrl_c_says_how_to_go_on(command, coco, tmp_path, monkeypatch):
    step, calls = training.Training._step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(training.Training, "_step", interrupted)
    status, _, err = command(*ARGUMENTS, *coco, "--steps", 6, "--output", tmp_path, "--checkpoint-steps", 2)
    assert status == 130 and err == ["interrupted at step 3; --resume continues from step 2"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--backbone", "lambdaresnet26rpt_256"), ("global scope", "lambdaresnet26t")),
        (("--backbone", "nothing"), ("unknown model 'nothing'",)),
        (("--recipe", "none"), ("unknown recipe 'none'; there are paper, overfit, or give",)),
        (("--freeze", "c9"), ("it has stem, c2, c3, c4, c5",)),
        (("--pretrained",), ("no public weights",)),
        (("--initial-checkpoint", "nowhere.pt"), ("nowhere.pt",)),
        (("--resume", "nowhere.pt"), ("nowhere.pt: no such checkpoint",)),
        (("--device", "abacus"), ("device 'abacus' cannot be used",)),
        (("--image-size", "8"), ("--image-size 8 is less than 32",)),
        (("--image-ids", "6"), ("has no image with the id 6",)),
        (("--opt", "magic"), ("magic",)),
    ],
)
def test_what_cannot_start_is_one_line(command, coco, tmp_path, arguments, parts):
    one_line(command(*ARGUMENTS, *coco, "--steps", 1, "--output", tmp_path / "run", *arguments), *parts)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line(command, coco, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 not much")
    one_line(
        command(*ARGUMENTS, *coco, "--steps", 1, "--output", tmp_path, "--resume"),
        "last.pt cannot be read as a checkpoint",
    )


def test_a_classifiers_weights_are_the_start(command, coco, checkpoint, tmp_path):
    status, _, err = command(
        *ARGUMENTS, *coco, "--steps", 1, "--output", tmp_path, "--initial-checkpoint", checkpoint, "--freeze",
        "stem", "c2", "c3", "c4", "c5",
    )  # fmt: skip
    assert status == 0 and err == []
    start, end = load_file(checkpoint), weights(tmp_path)
    assert torch.equal(
        end["backbone.body.stages_2.1.self_attn.position.table"], start["stages.2.1.self_attn.position.table"]
    )


def torchrun(*arguments, processes=2):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "lambdaresnet_zoo"]
    return subprocess.run(
        [sys.executable, "-m", *command, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_together_and_measure_as_one(command, coco, tmp_path):
    done = torchrun(*ARGUMENTS, *coco, "--steps", 3, "--output", tmp_path, "--device", "cpu", "--clip-grad", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 3 steps") == 1 and "3 steps of 4" in done.stdout
    measure = ("detect", "validate", "--checkpoint", tmp_path, *coco, "--workers", 0, "--device", "cpu")
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(*measure, "--results", one, "--output", one)[0] == 0
    done = torchrun(*measure, "--results", two, "--output", two)
    assert done.returncode == 0, done.stderr
    assert read_rows(one) == read_rows(two)
    for kind in ("bbox", "segm"):
        found = (tmp_path / f"one.{kind}.json").read_text()
        assert found == (tmp_path / f"two.{kind}.json").read_text() and len(found) > 1000


@pytest.mark.slow
def test_what_stops_two_processes_is_told_once(coco, tmp_path):
    done = torchrun(*ARGUMENTS, *coco, "--output", tmp_path, "--device", "cpu", "--backbone", "lambdaresnet26rpt_256")
    assert done.returncode and done.stderr.count("global scope") == 1 and not done.stdout
