"""Fine-tuning in one line, what it trains when, and that others take what it leaves."""

import json
import re
import subprocess
import sys

import pytest
import timm
import torch
from command import one_line
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm
from train_runs import ROOT, environment, equal, weights, write_images

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.train import loop, run
from lambdaresnet_zoo.tasks.train.options import TrainOptions
from lambdaresnet_zoo.tasks.train.records import Place
from lambdaresnet_zoo.weights.files import read_rows

SHIPPED = ("--model", "lambdaresnet32px.cifar10", "--pretrained")
QUICK = ("--device", "cpu", "--workers", 0, "--no-progress")


@pytest.fixture(scope="module")
def tuned(coloured, tmp_path_factory):
    """A run of one line on the coloured pictures, with their validation; its folder."""
    from lambdaresnet_zoo.cli import main

    folder = tmp_path_factory.mktemp("tuned") / "run"
    options = ["train", *SHIPPED, "--data", coloured, "--epochs", 4, "--batch-size", 12, "--output", folder, *QUICK]
    assert main(list(map(str, options))) == 0
    return folder


RECIPE_TOLD = {
    "default": (
        ("--model", "test_lambdaresnet"),
        "--warmup-epochs 5 (the default) leave nothing of --epochs 1; give more --epochs, or --warmup-epochs below 1",
    ),
    "recipe": (SHIPPED, "--warmup-epochs 2 (recipe finetune) leave nothing of --epochs 1; "),
    "file": (
        ("--model", "test_lambdaresnet", "--recipe", "mine.yaml"),
        "--warmup-epochs 7 (recipe mine.yaml) leave nothing of --epochs 1; ",
    ),
    "set": ((*SHIPPED, "--set", "warmup_epochs=4"), "error: --warmup-epochs 4 leave nothing of --epochs 1; "),
    "given": ((*SHIPPED, "--warmup-epochs", 3), "error: --warmup-epochs 3 leave nothing of --epochs 1; "),
    "opt": ((*SHIPPED, "--recipe", "other.yaml"), "--opt magic (recipe other.yaml): "),
}


@pytest.mark.parametrize("kind", RECIPE_TOLD)
def test_where_an_option_comes_from_is_told(command, coloured, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("options: {warmup_epochs: 7}\nnotes: {warmup_epochs: long}\n")
    (tmp_path / "other.yaml").write_text("options: {warmup_epochs: 0, opt: magic}\n")
    options, told = RECIPE_TOLD[kind]
    one_line(command("train", *options, "--data", coloured, "--epochs", 1, "--output", tmp_path / "run", *QUICK), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"freeze_epochs": 2, "sources": {"freeze_epochs": "finetune: why", "fsdp": "given"}},
         "--freeze-epochs 2 (recipe finetune) does not go with --fsdp; give --freeze-epochs 0, or leave --fsdp out"),
        ({"clip_mode": "agc", "sources": {"clip_mode": "given", "fsdp": "finetune"}},
         "--clip-mode agc does not go with --fsdp (recipe finetune); give --clip-mode norm, or leave --fsdp out"),
    ],
    ids=["freeze", "clip"],
)  # fmt: skip
def test_what_does_not_go_with_fsdp_is_told_with_its_source(tmp_path, options, told):
    place = Place(tmp_path, torch.device("cpu"), processes=2)
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        run._check(TrainOptions(model="m", recipe="finetune", fsdp=True, **options), place)


def test_a_batch_that_was_fitted_is_told_as_such(command, coloured, tmp_path):
    options = ("--model", "test_lambdaresnet", "--data", coloured, "--output", tmp_path, *QUICK, "--dry-run")
    status, out, _ = command("train", *options)
    assert status == 0 and "  batch_size = 36  (what the data fills)" in out


def test_timm_loads_what_it_leaves(tuned):
    model = timm.create_model(f"local-dir:{tuned / 'model'}", pretrained=True)
    assert model.num_classes == 3 and model.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    assert tuple(model.pretrained_cfg["mean"]) == (0.4914, 0.4822, 0.4465)
    for key, value in load_file(tuned / "model" / "model.safetensors").items():
        assert torch.equal(model.state_dict()[key], value)


def test_predict_and_validate_take_it(tuned, command, coloured):
    own = f"local-dir:{tuned / 'model'}"
    status, out, _ = command("predict", "--model", own, "--json", *sorted((coloured / "val" / "red").iterdir()))
    assert status == 0
    labels = [json.loads(line)["predictions"][0]["label"] for line in out]
    assert set(labels) <= {"blue", "green", "red"} and labels.count("red") >= 3
    status, out, _ = command("validate", "--model", own, "--data", coloured, "--device", "cpu", "--workers", 0)
    best = max(float(row["eval_top1"]) for row in read_rows(tuned / "summary.csv"))
    assert status == 0 and f"top-1        {best:.4f} %" in "\n".join(out)


def test_publish_takes_it(tuned, command, hub):
    status, out, err = command("publish", tuned / "model", "me/tuned", "--license", "apache-2.0", "--dry-run")
    assert (status, err) == (0, []) and out[0] == f"would upload to {hub.url}/me/tuned:"
    card = (tuned / "model" / "README.md").read_text()
    assert "recipe finetune, 4 epochs, seed 42" in card and "| 12 | epoch" in card


def test_the_recipe_is_the_default_and_is_saved(tuned):
    import yaml

    options = yaml.safe_load((tuned / "args.yaml").read_text())
    assert options["recipe"] == "finetune" and options["aa"].startswith("rand-") and options["reprob"] > 0
    assert options["layer_decay"] < 1 and options["freeze_epochs"] >= 1
    assert options["sources"]["aa"].startswith("finetune") and options["sources"]["epochs"] == "given"


def test_no_split_no_options(command, tmp_path):
    """A folder of a few images, as a beginner has it: no split, smaller than any default batch."""
    write_images(tmp_path / "mine", 9)
    status, out, err = command(
        "train", *SHIPPED, "--data", tmp_path / "mine", "--output", tmp_path / "run", "--epochs", 3, *QUICK
    )
    assert (status, err) == (0, []) and "24 images" in out[1] and "evaluated on 3 images, held out" in out[1]
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_the_classifier_alone_comes_first_and_decay_is_by_layer(command, coloured, tmp_path, monkeypatch):
    seen = []
    real = loop.Training._update

    def update(self, batches, epoch):
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        real(self, batches, epoch)
        after = self.model.state_dict()
        seen.append((epoch, {name for name, value in before.items() if not torch.equal(value, after[name])}))
        scales = [group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]
        assert min(scales) < 0.5 and max(scales) == 1.0
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        assert not any(module.training for module in norms)

    monkeypatch.setattr(loop.Training, "_update", update)
    options = ("--epochs", 3, "--freeze-epochs", 1, "--freeze-bn", "--layer-decay", 0.7, "--warmup-epochs", 0.5)
    arguments = ("train", *SHIPPED, "--data", coloured, "--batch-size", 12, "--output", tmp_path, *options, *QUICK)
    assert command(*arguments)[0] == 0
    for epoch, changed in seen[1:]:  # the first step's rate is next to nothing
        if epoch == 0:
            assert changed == {"head.fc.weight", "head.fc.bias"}
        else:
            assert "stem.conv1.conv.weight" in changed and "stages.1.2.self_attn.qkv.weight" in changed
            assert not any(".bn" in name or "norm" in name or "running" in name for name in changed)


def test_stages_are_frozen(train, checkpoint, tmp_path):
    options = ("--initial-checkpoint", checkpoint, "--recipe", "", "--freeze", "stem", "c2", "--epochs", 1)
    status, out, err = train("--output", tmp_path, *options)
    assert (status, err) == (0, []) and "of them trained" in out[0]
    start, end = load_file(checkpoint), weights(tmp_path)
    same = {key for key, value in end.items() if key in start and torch.equal(value, start[key])}
    trained = [key for key in end if key.startswith(("stages.3.", "head.")) and "norm" not in key and "weight" in key]
    assert trained and not [key for key in trained if key in same]
    assert all(key in same for key in end if key.startswith(("stem.", "stages.0.")))


def test_a_classifier_of_the_same_classes_is_kept(command, tmp_path):
    from lambdaresnet_zoo.models.lambdaresnet_small import CIFAR10_CLASSES

    for classes, kept in ((CIFAR10_CLASSES, True), ([f"x{name}" for name in CIFAR10_CLASSES], False)):
        for name in classes:
            (tmp_path / classes[0] / name).mkdir(parents=True)
            for number in range(2):
                from PIL import Image

                Image.new("RGB", (32, 32), (number, 20, 30)).save(tmp_path / classes[0] / name / f"{number}.png")
        output = tmp_path / f"run {kept}"
        options = ("--epochs", 1, "--batch-size", 10, "--lr", 1e-9, "--warmup-epochs", 0, "--output", output, *QUICK)
        data = ("--data", tmp_path / classes[0], "--val-fraction", 0, "--no-model-ema")
        assert command("train", *SHIPPED, *data, *options)[0] == 0
        own = timm.create_model("lambdaresnet32px.cifar10", pretrained=True).state_dict()["head.fc.weight"]
        assert torch.allclose(weights(output)["head.fc.weight"], own, atol=1e-6) == kept


def test_a_folder_is_tuned_on(tuned, command, coloured, tmp_path):
    arguments = ("--model", f"local-dir:{tuned / 'model'}", "--pretrained", "--data", coloured, "--epochs", 3)
    assert command("train", *arguments, "--batch-size", 12, "--output", tmp_path / "again", *QUICK)[0] == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'again' / 'model'}", pretrained=True).num_classes == 3


def test_global_layers_are_resampled_for_another_size(command, coloured, tmp_path):
    options = ("--img-size", 64, "--epochs", 1, "--batch-size", 18, "--warmup-epochs", 0, "--val-fraction", 0)
    arguments = ("--model", "lambdaresnet26rpt_256", "--data", coloured, "--output", tmp_path, *options, *QUICK)
    assert command("train", *arguments)[0] == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_network_that_was_built_for_a_size_is_trained_at_it(command, coloured, tmp_path):
    options = ("--model-kwargs", "img_size=64", "--epochs", 1, "--batch-size", 18, "--warmup-epochs", 0)
    arguments = ("--model", "lambdaresnet26rpt_256", "--data", coloured, "--output", tmp_path, *options, *QUICK)
    status, out, err = command("train", *arguments)
    assert (status, err) == (0, []) and "3x64x64" in out[0]
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)


def test_validate_measures_what_training_measured(command, coloured, tmp_path):
    """Of a network of timm that has another size and crop for evaluation."""
    options = ("--model", "resnet10t", "--img-size", 64, "--epochs", 2, "--batch-size", 12, "--warmup-epochs", 0)
    assert command("train", "--data", coloured, "--output", tmp_path, *options, *QUICK)[0] == 0
    model, results = f"local-dir:{tmp_path / 'model'}", tmp_path / "rows.csv"
    data = ("--data", coloured / "val", "--workers", 0, "--device", "cpu", "--results", results)
    assert command("validate", "--model", model, *data)[0] == 0
    row, best = read_rows(results)[0], read_rows(tmp_path / "summary.csv")
    assert row["img_size"] == "64" and row["crop_pct"] == "0.875"
    assert any(abs(float(row["loss"]) - float(epoch["eval_loss"])) < 1e-4 for epoch in best)


def test_a_damaged_folder_is_not_tuned_on(command, coloured, tmp_path):
    common = ("--data", coloured, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 12, *QUICK)
    assert command("train", "--model", "test_resnet", *common, "--img-size", 64, "--output", tmp_path)[0] == 0
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = ("--model", f"local-dir:{path.parent}", "--pretrained", "--output", tmp_path / "again")
    one_line(command("train", *common, *again), "cannot be built: ", "model.safetensors is damaged, or another file")


def test_a_dry_run_prints_and_writes_nothing(command, coloured, tmp_path):
    arguments = ("train", *SHIPPED, "--data", coloured, "--batch-size", 12, "--output", tmp_path / "run", *QUICK)
    status, out, err = command(*arguments, "--set", "epochs=7", "--dry-run")
    assert (status, err) == (0, []) and not (tmp_path / "run").exists()
    assert out[0].startswith("lambdaresnet32px.cifar10: 0.46 M parameters") and "3x32x32" in out[0]
    assert "36 images, 3 classes (blue, green, red); evaluated on 12 images" in out[1]
    assert "7 epochs of 3 steps of 12 images" in out[2]
    assert "  epochs = 7  (--set)" in out and "  batch_size = 12  (given)" in out
    assert any(line.startswith("  reprob = ") and "(finetune" in line for line in out)


def test_the_papers_recipe_by_name(command, coloured):
    arguments = ("--recipe", "paper-350ep", "--model", "lambdaresnet50", "--data", coloured, "--batch-size", 12)
    status, out, err = command("train", *arguments, "--device", "cpu", "--dry-run")
    assert (status, err) == (0, []) and out[2].startswith("350 epochs of 3 steps of 12 images")
    one_line(command("train", "--recipe", "paper-35ep", "--model", "lambdaresnet50", "--data", coloured), "paper-350ep")


def test_wrong_usage(command):
    status, _, err = command("train", "--epochs", 0)
    assert status == 2 and "at least 1" in err[-1]
    status, _, err = command("train")
    assert status == 2 and "--model NAME" in err[-1]


def test_the_script(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--model", "test_lambdaresnet", "--data", "nowhere"]
    done = subprocess.run(script, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere: no such") and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_photographs(shared_data, command, tmp_path):
    """ants and bees: the run ends above chance, with curves and pictures."""
    data = shared_data("hymenoptera")
    options = ("--epochs", 6, "--freeze-epochs", 1, "--output", tmp_path, *QUICK)
    status, out, err = command("train", *SHIPPED, "--data", data, *options)
    assert status == 0 and "244 images, 2 classes (ants, bees); evaluated on 153 images" in out[1]
    assert len(err) == 1 and "passed over 1 file" in err[0] and "1 .gif" in err[0]  # which is no photograph
    assert max(float(row["eval_top1"]) for row in read_rows(tmp_path / "summary.csv")) > 55


@pytest.mark.slow
def test_pseudo_labels_are_trained_on_and_resume_to_the_bit(command, tuned, coloured, train, tmp_path, monkeypatch):
    """A teacher's soft labels of the validation images, half as many as there are labelled ones."""
    import os
    import signal

    from test_train_loop import after

    teacher = ("--teacher", f"local-dir:{tuned / 'model'}", "--data", coloured / "val")
    assert command("label", *teacher, "--out", tmp_path / "labels", "--device", "cpu", "--workers", 0)[0] == 0
    options = ("--pseudo-labels", tmp_path / "labels", "--pseudo-ratio", 0.5, "--deterministic", "--output")
    status, out, err = train(*options, tmp_path / "whole")
    assert (status, err) == (0, []) and "54 images, 3 classes" in out[1]
    assert "18 of the images with pseudo-labels" in out[1] and "of 6 steps of 9" in out[2]
    after(monkeypatch, 8, lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*options, tmp_path / "cut")[0] == 0
    assert train(*options, tmp_path / "cut", "--resume")[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    one_line(train("--pseudo-labels", tmp_path / "labels", "--pseudo-ratio", 0, "--output", tmp_path / "no"), "ratio")
