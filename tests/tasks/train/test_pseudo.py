"""Pseudo-labelled images beside labelled ones: targets, classes, the ratio, and what an epoch has."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from validation_sets import NAMES, pictures, write_folder, write_tar
from validation_sets import write as write_form

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.label.files import Choice, LabelStore, Said, read_labels
from lambdaresnet_zoo.tasks.train.pseudo import mixed_dataset, read_pseudo_labels
from lambdaresnet_zoo.weights.files import read_rows

COUNT = 40
CLASSES = ["ant", "bee", "cat", "dog"]


class Labelled:
    """Pairs, as training has them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def pair(self, number):
        return Image.new("RGB", (8, 8), (number, 0, 0)), number % 4

    def name(self, number):
        return f"labelled {number}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), pictures(COUNT))


@pytest.fixture
def write(images, tmp_path):
    """Write labels of the images: of image n the best class is n modulo 4, with two probabilities."""

    def labels(choice=None, topk=2, **run):
        store = LabelStore(tmp_path / "labels", COUNT)
        run = {
            "teacher": "t", "num_classes": 4, "classes": CLASSES, "data": str(images), "dataset": "", "split": "",
            "input_key": None, "images": COUNT, **run,
        }  # fmt: skip
        paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
        for part in store.parts:
            rows = [Said(n, paths[n], [n % 4, (n + 1) % 4][:topk], [0.6, 0.2][:topk]) for n in store.images(part)]
            store.write_part(part, rows, [])
        store.finish(run, choice or Choice())
        return tmp_path / "labels"

    return labels


def test_soft_targets_hold_what_the_teacher_said(write):
    pseudo = read_pseudo_labels(str(write()), CLASSES)
    assert pseudo.soft and len(pseudo) == COUNT
    image, target = pseudo.pair(5)
    assert image.mode == "RGB" and image.size == (130, 110)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, torch.tensor([0.1, 0.6, 0.2, 0.1]))


def test_hard_targets_are_classes(write):
    pseudo = read_pseudo_labels(str(write(Choice(hard=True)) / "labels.parquet"), CLASSES)
    assert not pseudo.soft
    assert [pseudo.pair(number)[1] for number in range(6)] == [0, 1, 2, 3, 0, 1]


def test_classes_are_matched_by_their_names(write):
    folder = str(write(classes=["Dog", "cat", "ant", "bee"]))
    pseudo = read_pseudo_labels(folder, CLASSES)
    torch.testing.assert_close(pseudo.target(0), torch.tensor([0.1, 0.1, 0.2, 0.6]))  # dog, then cat
    numbered = read_pseudo_labels(folder, ["0", "1", "2", "3"])
    torch.testing.assert_close(numbered.target(0), torch.tensor([0.6, 0.2, 0.1, 0.1]))
    with pytest.raises(UserError, match=r"has the teacher's class 'bee', and the data has ant, cat, dog, ..."):
        read_pseudo_labels(folder, ["ant", "cat", "dog", "elk"])
    with pytest.raises(UserError, match="is of 4 classes, and the data has 3"):
        read_pseudo_labels(folder, CLASSES[:3])


def test_classes_that_are_numbers_are_matched_by_their_names_too(write):
    folder = str(write(classes=["2", "0", "1", "3"]))
    torch.testing.assert_close(read_pseudo_labels(folder, list("0123")).target(0), torch.tensor([0.2, 0.1, 0.6, 0.1]))
    with pytest.raises(UserError, match="has the teacher's class '0', and the data has 1, 2, 3"):
        read_pseudo_labels(folder, list("1234"))


def test_names_that_differ_only_in_spelling_are_classes_of_their_own(write):
    classes = ["a_b", "c", "A b", "d"]
    pseudo = read_pseudo_labels(str(write(Choice(hard=True), classes=classes)), sorted(classes))
    assert [pseudo.target(number) for number in range(4)] == [sorted(classes).index(name) for name in classes]


def test_an_image_that_is_to_be_repeated_is(write):
    pseudo = read_pseudo_labels(str(write(Choice(per_class=12, repeat=True, hard=True))), CLASSES)
    assert len(pseudo) == 48
    assert np.bincount(pseudo.labels.labels).tolist() == [12] * 4


@pytest.mark.parametrize("ratio", [0.25, 1, 3.1, 7])
def test_the_ratio_is_that_of_an_epoch(write, ratio):
    mixed = mixed_dataset(Labelled(10), read_pseudo_labels(str(write()), CLASSES), ratio, 0)
    names = [mixed.name(number) for number in range(len(mixed))]
    assert len(mixed) == 10 + round(10 * ratio)
    assert names[:10] == [f"labelled {number}" for number in range(10)]
    assert all(name.endswith(".jpg") for name in names[10:])
    assert mixed.pair(3)[1] == 3 and mixed.pair(10)[1].shape == (4,)


def test_all_are_dealt_out_before_any_comes_again(write):
    mixed = mixed_dataset(Labelled(5), read_pseudo_labels(str(write()), CLASSES), 3, 1)
    dealt = []
    for epoch in range(16):
        mixed.set_epoch(epoch)
        dealt += [mixed.card(place) for place in range(15)]
    turns = [dealt[turn * COUNT : (turn + 1) * COUNT] for turn in range(6)]
    assert all(sorted(turn) == list(range(COUNT)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 6


def test_an_epochs_images_depend_on_seed_and_epoch_alone(write):
    folder = str(write())

    def epoch(number, seed, visit=()):
        mixed = mixed_dataset(Labelled(5), read_pseudo_labels(folder, CLASSES), 3, seed)
        for other in visit:
            mixed.set_epoch(other)
            mixed.card(0)
        mixed.set_epoch(number)
        return [mixed.card(place) for place in (*range(14, -1, -1), 0)]

    assert epoch(7, 0) == epoch(7, 0, visit=(1, 2, 30, 8))
    assert epoch(7, 0) != epoch(7, 1) and epoch(7, 0) != epoch(6, 0)


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf")])
def test_a_wrong_ratio_is_one_line(write, ratio):
    with pytest.raises(UserError, match=r"--pseudo-ratio .* is not a number above 0"):
        mixed_dataset(Labelled(5), read_pseudo_labels(str(write()), CLASSES), ratio, 0)


def test_labels_that_do_not_go_with_the_images_are_one_line(write, images, tmp_path):
    with pytest.raises(UserError, match="no such file; give the folder that lambdaresnet-zoo label has finished"):
        read_pseudo_labels(str(tmp_path), CLASSES)
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is not what lambdaresnet-zoo label writes"):
        read_pseudo_labels(str(tmp_path), CLASSES)
    with pytest.raises(UserError, match=r"holds no label; run .* with a lower --threshold"):
        read_pseudo_labels(str(write(Choice(threshold=0.9))), CLASSES)
    folder = str(write())
    other = shutil.copytree(images, tmp_path / "copy")
    assert read_pseudo_labels(folder, CLASSES, str(other)).pair(COUNT - 1)[0].size == (130, 110)
    victim = sorted(other.rglob("*.jpg"))[0]
    victim.rename(victim.with_name("zzz.jpg"))
    with pytest.raises(UserError, match="label them again"):
        read_pseudo_labels(folder, CLASSES, str(other))
    shutil.copy(victim.with_name("zzz.jpg"), victim)
    with pytest.raises(UserError, match=f"is of {COUNT} images, and .* has {COUNT + 1} now: label them again"):
        read_pseudo_labels(folder, CLASSES, str(other))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_every_image_is_where_it_was(command, checkpoint, tmp_path, kind):
    """One that has another name stands elsewhere, and those between have each other's places."""
    rows = list(pictures(20))
    data = write_form(kind, tmp_path, rows)
    options = ("--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "labels", "--workers", 0)
    assert command("label", "--teacher", "test_lambdaresnet", *options, "--device", "cpu")[0] == 0
    folder = str(tmp_path / "labels")
    names = list(read_labels(folder).paths)
    assert len(read_pseudo_labels(folder, NAMES)) == 20
    if kind == "folder":
        (data / names[2]).rename((data / names[6]).with_name("0065.jpg"))
    else:
        members = [(name, rows[int(name[-7:-4])][1]) for name in names]
        members[2] = (f"{names[6][:-4]}5.jpg", members[2][1])
        write_tar(data, members)
    with pytest.raises(UserError, match=f"names '{names[2]}' where .* has '{names[3]}': label them again"):
        read_pseudo_labels(folder, NAMES)


def test_reading_gives_what_was_written(write):
    labels = read_labels(write(topk=1))
    assert labels.probabilities.shape == (COUNT, 1) and labels.run["teacher"] == "t"
    torch.testing.assert_close(
        read_pseudo_labels(str(write(topk=1)), CLASSES).target(1), torch.tensor([0.4 / 3, 0.6, 0.4 / 3, 0.4 / 3])
    )


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_what_label_writes_train_learns_from(command, checkpoint, images, tmp_path, hard):
    unlabelled = write_folder(tmp_path / "unlabelled", pictures(50))
    options = ("--checkpoint", checkpoint, "--data", unlabelled, "--out", tmp_path / "labels", "--workers", 0)
    status, _, err = command(
        "label", "--teacher", "test_lambdaresnet", *options, "--device", "cpu", *(["--hard"] if hard else [])
    )
    assert status == 0, err
    options = ("--data", images, "--val-fraction", 0, "--pseudo-labels", tmp_path / "labels", "--pseudo-ratio", 2)
    options += ("--output", tmp_path / "run", "--epochs", 2, "--warmup-epochs", 0, "--batch-size", 16, "--img-size", 32)
    machine = ("--workers", 0, "--device", "cpu", "--no-progress")
    status, out, err = command("train", "--model", "test_lambdaresnet", *options, *machine)
    assert status == 0, err
    assert any(f"{3 * COUNT} images, 7 classes" in line for line in out), out
    assert any(f"{2 * COUNT} of the images with pseudo-labels" in line for line in out), out
    losses = [float(row["train_loss"]) for row in read_rows(tmp_path / "run" / "summary.csv")]
    assert len(losses) == 2 and all(0 < loss < 3 for loss in losses)
