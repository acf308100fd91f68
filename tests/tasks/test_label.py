"""`label`: what the teacher says is what it predicts; what is kept; shards, torchrun, interruption, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from command import one_line
from safetensors.torch import save_file
from validation_sets import NAMES, photographs, pictures, write, write_folder

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.label import run as label_run
from lambdaresnet_zoo.tasks.label.files import Choice, LabelStore, choose, read_labels
from lambdaresnet_zoo.tasks.loading import fit_input
from lambdaresnet_zoo.tasks.train.pseudo import read_pseudo_labels
from lambdaresnet_zoo.weights.files import read_rows

NAME = "test_lambdaresnet"
COUNT = 75  # three parts, the last one short
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures in folders whose names do not matter, and one beside them."""
    root = write_folder(tmp_path_factory.mktemp("unlabelled"), pictures(COUNT))
    first = min(root.rglob("*.jpg"))
    first.rename(root / "alone.jpg")
    return root


@pytest.fixture
def label(command, checkpoint, images, tmp_path):
    """Run the command with the small teacher; returns its outcome."""

    def run(*arguments, data=images, out=tmp_path / "out"):
        options = ("--checkpoint", checkpoint, "--data", data, "--out", out, "--workers", 0, "--batch-size", 10)
        return command("label", "--teacher", NAME, *options, "--device", "cpu", *arguments)

    return run


def parts(folder):
    return {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}


def test_soft_labels_are_the_teachers_probabilities(label, images, expected, tmp_path):
    status, out, err = label()
    assert status == 0 and err == ["note: no image of 4 of 7 classes is kept: 1, 3, 4, 5"], err
    assert out[0].startswith(f"{COUNT} labels of {COUNT} images in ")
    labels = read_labels(tmp_path / "out")
    assert labels.indices.tolist() == list(range(COUNT)) and len(set(labels.paths)) == COUNT
    for number in (0, 31, 32, COUNT - 1):
        probabilities = expected(images / labels.paths[number])
        assert labels.classes[number].tolist() == probabilities.argsort(descending=True).tolist()
        np.testing.assert_allclose(labels.probabilities[number], probabilities.sort(descending=True)[0], atol=1e-5)
        assert labels.labels[number] == probabilities.argmax()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert labels.run == {**run, "choice": vars(Choice())} and len(run["weights_sha256"]) == 64
    assert (run["teacher"], run["images"], run["num_classes"], run["input_size"]) == (NAME, COUNT, 7, [3, 96, 96])


def test_what_is_kept(label, tmp_path):
    assert label()[0] == 0
    whole = read_labels(tmp_path / "out")
    sure = whole.probabilities[:, 0]
    threshold = float(np.median(sure))
    made = parts(tmp_path / "out")
    status, out, _ = label("--threshold", threshold, "--hard", "--per-class", 3, "--repeat")
    assert status == 0 and out[0].split(", ")[-2] == "hard"
    assert parts(tmp_path / "out") == made  # the teacher was not asked again
    kept = read_labels(tmp_path / "out")
    assert kept.probabilities is None and kept.classes is None and kept.run["choice"]["per_class"] == 3
    found = set(whole.labels[sure >= threshold])
    assert len(found) > 1
    for number in range(7):
        own = kept.indices[kept.labels == number]
        assert len(own) == (3 if number in found else 0)
        surest = [index for index in np.argsort(-sure, kind="stable") if whole.labels[index] == number]
        surest = [index for index in surest if sure[index] >= threshold][:3]
        assert set(own) == set(surest)
    rows = read_rows(tmp_path / "out" / "classes.csv")
    assert [int(row["images"]) for row in rows] == [int((whole.labels == number).sum()) for number in range(7)]
    assert sum(int(row["kept"]) for row in rows) == len(kept.indices)


@pytest.mark.parametrize(
    ("choice", "times"),
    [
        (Choice(), [1, 1, 1, 1, 1, 1]),
        (Choice(threshold=0.5), [1, 1, 0, 1, 1, 0]),
        (Choice(threshold=0.9), [1, 0, 0, 0, 0, 0]),
        (Choice(per_class=2), [1, 1, 0, 1, 0, 1]),
        (Choice(per_class=2, threshold=0.5), [1, 1, 0, 1, 0, 0]),
        (Choice(per_class=5, repeat=True, threshold=0.5), [2, 1, 0, 2, 5, 0]),
    ],
)  # fmt: skip
def test_choosing(choice, times):
    labels = np.array([0, 0, 0, 0, 1, 1])
    confidence = np.array([0.9, 0.6, 0.3, 0.7, 0.5, 0.4])
    if choice.per_class == 2:
        labels, confidence = np.array([0, 0, 0, 1, 0, 1]), np.array([0.9, 0.6, 0.3, 0.7, 0.5, 0.4])
    assert choose(labels, confidence, choice).tolist() == times


def test_few_probabilities_are_kept_where_asked(label, tmp_path):
    assert label("--topk", 2)[0] == 0
    labels = read_labels(tmp_path / "out")
    assert labels.probabilities.shape == labels.classes.shape == (COUNT, 2)
    assert (labels.probabilities.sum(1) < 1).all()


def test_shards_make_what_one_job_makes(label, tmp_path):
    assert label(out=tmp_path / "one")[0] == 0
    status, out, _ = label("--shard", "0/2")
    assert status == 0 and out == [f"2 of 3 parts are in {tmp_path / 'out'}; the other shards have yet to end"]
    assert not (tmp_path / "out" / "labels.parquet").exists()
    assert label("--shard", "1/2")[0] == 0
    ours, theirs = read_labels(tmp_path / "out"), read_labels(tmp_path / "one")
    assert (ours.run, list(ours.paths), ours.labels.tolist()) == (
        theirs.run,
        list(theirs.paths),
        theirs.labels.tolist(),
    )
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)  # of other batches


def test_what_was_interrupted_goes_on(label, tmp_path, monkeypatch):
    assert label(out=tmp_path / "one")[0] == 0
    said, calls = label_run._said, []

    def interrupted(*arguments):
        calls.append(len(arguments[1]))
        if sum(calls) > 40:
            raise KeyboardInterrupt
        return said(*arguments)

    monkeypatch.setattr(label_run, "_said", interrupted)
    status, _, err = label()
    assert status == 130 and err == [
        f"interrupted: 1 of 3 parts are in {tmp_path / 'out'}; run the same command to go on"
    ]
    calls.clear()
    monkeypatch.setattr(label_run, "_said", lambda *arguments: calls.append(len(arguments[1])) or said(*arguments))
    assert label()[0] == 0
    assert sum(calls) == COUNT - 32
    assert read_labels(tmp_path / "out").indices.tolist() == list(range(COUNT))
    assert read_labels(tmp_path / "out").labels.tolist() == read_labels(tmp_path / "one").labels.tolist()
    assert not list(tmp_path.rglob("*.tmp"))


def start(*arguments, processes=0):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)) if processes else ()
    command = (sys.executable, *launcher, "-m", "lambdaresnet_zoo", "label", "--teacher", NAME, "--device", "cpu")
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_makes_what_one_process_makes(label, images, checkpoint, tmp_path):
    assert label(out=tmp_path / "one")[0] == 0
    options = ("--checkpoint", checkpoint, "--data", images, "--workers", 0, "--batch-size", 10)
    process = start(*options, "--out", tmp_path / "two", processes=2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("labels of") == 1
    assert read_labels(tmp_path / "two").labels.tolist() == read_labels(tmp_path / "one").labels.tolist()
    assert read_labels(tmp_path / "two").run == read_labels(tmp_path / "one").run


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(label, images, checkpoint, tmp_path):
    options = ("--checkpoint", checkpoint, "--data", images, "--workers", 0, "--batch-size", 1)
    process = start(*options, "--out", tmp_path / "out")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for path in (tmp_path / "out" / "parts").glob("[!.]*.parquet"):
        assert pyarrow.parquet.read_table(path).num_rows == 32
    assert label("--batch-size", 1)[0] == 0
    assert read_labels(tmp_path / "out").indices.tolist() == list(range(COUNT))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_data_may_be_named_from_where_one_is(label, tmp_path, monkeypatch, kind):
    """The names of its images are those within it, whatever it was called, and training finds them again."""
    data = write(kind, tmp_path / "data", list(pictures(40)))
    monkeypatch.chdir(tmp_path)
    assert label(data=f"data/{data.name}")[0] == 0
    assert label(data=data, out=tmp_path / "absolute")[0] == 0
    found = list(read_labels(tmp_path / "out").paths)
    assert found == list(read_labels(tmp_path / "absolute").paths) and min(found) == "ant/000.jpg"
    monkeypatch.chdir(tmp_path / "data")
    assert len(read_pseudo_labels(str(tmp_path / "out"), NAMES)) == 40


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_other_forms_of_data(label, tmp_path, kind):
    rows = list(pictures(40))
    assert label(data=write(kind, tmp_path, rows), out=tmp_path / "out")[0] == 0
    folder = write_folder(tmp_path / "folder", rows)
    assert label(data=folder, out=tmp_path / "one")[0] == 0
    other, one = read_labels(tmp_path / "out"), read_labels(tmp_path / "one")
    by_name = dict(zip((Path(path).name for path in one.paths), one.labels.tolist(), strict=True))
    assert [by_name[Path(path).name] for path in other.paths] == other.labels.tolist()


def test_parquet_without_a_column_of_labels(label, tmp_path):
    root = write("parquet", tmp_path, list(pictures(20)))
    table = pyarrow.parquet.read_table(root / "test.parquet").drop_columns(["label"])
    features = {"image": {"_type": "Image"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, root / "test.parquet")
    assert label(data=root)[0] == 0
    assert len(read_labels(tmp_path / "out").indices) == 20


def test_damaged_images(label, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    damaged = data / NAMES[2] / "zzz.jpg"
    damaged.write_bytes(b"no image")
    one_line(label(data=data), damaged, "not an image", "--skip-bad")
    status, out, err = label("--skip-bad", data=data)
    assert status == 0 and out[0].startswith(f"{COUNT} labels of {COUNT + 1} images")
    assert err[0].startswith(f"left out: {damaged}: ")
    labels = read_labels(tmp_path / "out")
    assert len(labels.indices) == COUNT and str(Path(NAMES[2], "zzz.jpg")) not in labels.paths


def test_another_run_in_the_folder_is_not_continued(label, images, tmp_path):
    assert label()[0] == 0
    one_line(label("--img-size", 64), "labels of another run: input_size [3, 96, 96] there, [3, 64, 64] here")
    fewer = write_folder(tmp_path / "fewer", pictures(20))
    one_line(label(data=fewer), f"images {COUNT} there, 20 here")
    (tmp_path / "out" / "run.json").write_text("{")
    one_line(label(), "run.json is damaged")


def test_a_damaged_part_is_named(label, tmp_path):
    assert label()[0] == 0
    part = tmp_path / "out" / "parts" / "000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    one_line(label(), part, "is damaged", "remove it, and run the command again")
    part.unlink()
    assert label()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "2/2"], "'2/2' is not I/N with I from 0 to N-1"),
        (["--shard", "1"], "'1' is not I/N"),
        (["--threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--repeat"], "--repeat goes with --per-class N"),
        (["--workers", "-1"], "--workers -1 is less than 0"),
    ],
)
def test_wrong_usage(label, arguments, message):
    status, _, err = label(*arguments)
    assert status == 2 and message in err[-1]


def test_what_cannot_be_labelled_is_one_line(label, command, tmp_path):
    one_line(label(data=tmp_path / "nothing"), "nothing: no such file or folder")
    (tmp_path / "empty").mkdir()
    one_line(label(data=tmp_path / "empty"), "empty")
    shards = write("webdataset", tmp_path)
    one_line(label(data=shards), "can only be read from start to end")
    (tmp_path / "file").write_text("")
    one_line(label(out=tmp_path / "file"), "--out", "cannot be written")
    one_line(command("label", "--teacher", "lambdaresnet50", "--data", tmp_path, "--out", tmp_path / "x"), "no public")


def test_the_sizes_of_parts_depend_on_the_images_alone(tmp_path):
    for count, size in ((1, 32), (2048, 32), (6400, 100), (130_000_000, 10_000)):
        store = LabelStore(tmp_path, count)
        assert store.size == size
        assert store.images(store.parts[-1])[-1] == count - 1


def test_photographs_are_labelled_as_they_are_shown(label, tmp_path):
    for name, rows in zip(("shown", "stored"), photographs(), strict=True):
        assert label(data=write_folder(tmp_path / name, rows), out=tmp_path / f"{name}-labels")[0] == 0
    shown, stored = (read_labels(tmp_path / f"{name}-labels") for name in ("shown", "stored"))
    assert np.array_equal(shown.probabilities, stored.probabilities)
    assert np.array_equal(shown.classes, stored.classes)


BOUND = "lambdaresnet26rpt_256"


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """Weights of a network that is bound to a size, here to 64 pixels, and not to those of its configuration."""
    torch.manual_seed(0)
    model = timm.create_model(BOUND, num_classes=7, img_size=64)
    path = tmp_path_factory.mktemp("bound") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_a_network_is_used_at_the_size_that_its_weights_are_of(command, bound, tmp_path):
    """By every command that takes weights; `train` has a test of its own."""
    data = write_folder(tmp_path / "images", pictures(8))
    weights = ("--checkpoint", bound)
    status, out, err = command("predict", "--model", BOUND, *weights, data, "--topk", 1, "--json")
    assert (status, err) == (0, []) and len(out) == 8
    predicted = [json.loads(line)["predictions"][0] for line in out]
    common = ("--data", data, "--workers", 0, "--device", "cpu", *weights)
    results = tmp_path / "rows.csv"
    assert command("validate", "--model", BOUND, *common, "--results", results)[0] == 0
    assert read_rows(results)[0]["img_size"] == "64"
    assert command("label", "--teacher", BOUND, *common, "--out", tmp_path / "labels")[0] == 0
    labels = read_labels(tmp_path / "labels")
    assert labels.run["input_size"] == [3, 64, 64]
    assert labels.labels.tolist() == [row["index"] for row in predicted]
    np.testing.assert_allclose(labels.probabilities[:, 0], [row["probability"] for row in predicted], atol=1e-5)
    assert command("label", "--teacher", BOUND, *common, "--out", tmp_path / "large", "--img-size", 96)[0] == 0
    assert read_labels(tmp_path / "large").run["input_size"] == [3, 96, 96]


def test_a_size_that_a_network_cannot_have_is_refused():
    model = timm.create_model("gmlp_ti16_224", num_classes=3)
    assert fit_input(model)["input_size"] == (3, 224, 224)
    with pytest.raises(UserError, match="model 'gmlp_ti16_224' takes no input of 64 pixels"):
        fit_input(model, {"img_size": 64})
