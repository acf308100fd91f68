"""`validate`: how classes of data and model are matched."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from command import one_line
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from validation_sets import (
    BASE,
    MODEL,
    NAMES,
    row_of,
    write,
    write_folder,
    write_parquet,
    write_tar,
)

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.validation_classes import Classes, check_real, identify, match_classes, places_of
from lambdaresnet_zoo.tasks.validation_data import Source, open_source

TIED = ("01", "1", "Cat", "cat", "dog")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_classes_are_numbered_alike_in_every_process(tmp_path, rows, kind):
    """Names that timm's order does not tell apart would stand as the hashes of the process have them."""
    members = [(f"{name}/{number}.jpg", rows[number][1]) for number, name in enumerate(TIED)]
    data = write_tar(tmp_path / "data.tar", members) if kind == "tar" else tmp_path / "data"
    for name, content in members if kind == "folder" else ():
        (data / name).parent.mkdir(parents=True)
        (data / name).write_bytes(content)
    code = f"""
from lambdaresnet_zoo.tasks.validation_data import Source, open_source
found = open_source(Source({str(data)!r}))
reader = found.images.dataset.reader
print(*found.classes, *sorted((int(reader.filename(n, basename=True)[0]), int(reader[n][1])) for n in range(5)))"""
    told = []
    for seed in "0", "3":
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        told.append(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True))
    expected = " ".join([*TIED, *(str((number, number)) for number in range(5))])
    assert [one.stdout.strip() for one in told] == [expected] * 2, told[0].stderr


@pytest.mark.parametrize("kind", ["folder", "tar", "tars"])
def test_every_image_is_of_a_class(validate, command, checkpoint, tmp_path, rows, kind):
    data, picture = write(kind, tmp_path, rows), rows[0][1]

    def add(name):
        if kind == "folder":
            (data / name).parent.mkdir(exist_ok=True)
            (data / name).write_bytes(picture)
        else:
            with tarfile.open(data / "ant.tar" if kind == "tars" else data, "a") as tar:
                info = tarfile.TarInfo(f"./{name}" if kind == "tar" else name)
                info.size = len(picture)
                tar.addfile(info, io.BytesIO(picture))

    add("cover.jpg")
    if kind == "tars":  # each is of a class
        assert validate("--data", data)[0] == 0
    else:
        one_line(validate("--data", data), "cover.jpg: the image is in no class's folder; move it into one")
        options = ("--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "labels", *BASE)
        assert command("label", "--teacher", MODEL, *options)[0] == 0
        data = write(kind, tmp_path / "again", rows)
    add(".ipynb_checkpoints/1-checkpoint.jpg")
    one_line(validate("--data", data), ".ipynb_checkpoints: the folder holds images, and is no class; remove it")
    data = write(kind, tmp_path / "once more", rows)
    add("__MACOSX/1.jpg")
    one_line(validate("--data", data), "__MACOSX: the folder holds images, and is no class; remove it")


def test_the_number_of_classes_must_match(validate, tmp_path, rows):
    data = write_folder(tmp_path / "six", [row for row in rows if row[0] != 3])
    one_line(validate("--data", data), "6 classes", "the model 7", "--class-map")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    assert validate("--data", data, "--class-map", names)[0] == 0
    one_line(validate("--data", data, "--class-map", tmp_path / "none.txt"), "none.txt", "no such file")
    few = tmp_path / "few.txt"
    few.write_text("\n".join(["unknown"] * 8 + list(NAMES)))
    one_line(validate("--data", data, "--class-map", few), "classes run from 0 to 6")


@pytest.mark.parametrize("kind", ["folder", "tar", "tars"])
def test_a_class_map_names_every_class_of_the_data(validate, tmp_path, rows, kind):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES).replace("cat", "lynx"))
    one_line(validate("--data", write(kind, tmp_path, rows), "--class-map", names), "names.txt", "no class 'cat'")
    names.write_text("\n".join(NAMES))
    assert validate("--data", write(kind, tmp_path, rows), "--class-map", names)[0] == 0


def test_classes_in_another_order_are_found_by_name(command, tmp_path, rows):
    """The shipped weights know their classes; ships before frogs would cost a fifth of the figure."""
    known = timm.create_model("lambdaresnet32px.cifar10").pretrained_cfg["label_names"]
    rows = [(number % 10, x) for number, (_, x) in enumerate(rows)]
    wrong = [*known[:6], known[8], known[7], known[6], known[9]]
    base = ("validate", "--model", "lambdaresnet32px.cifar10", *BASE, "--data")
    one_line(command(*base, write_parquet(tmp_path / "a", rows, wrong)), "'ship' is number 6", "8 of the model")
    assert command(*base, write_parquet(tmp_path / "b", rows, known))[0] == 0
    foreign = [f"breed {letter}" for letter in "abcdefghij"]
    status, out, _ = command(*base, write_parquet(tmp_path / "c", rows, foreign))
    assert status == 0 and any("only their number was compared" in line for line in out)


@pytest.mark.parametrize(
    ("known", "names", "problem"),
    [
        ("201", "012", "'0' is number 0 of the data and 1 of the model"),  # a class map gave the model's order
        ("123", "123", ""),
        ("123", "012", "'1' is number 1 of the data and 0 of the model"),
        (("ant", "bee", "cat"), "012", ""),  # by position, as ImageNet's folders 0 to 999 of a model with words
        (("ant", "bee", "cat"), "123", "do not run from 0 to 2"),
        ((), "012", ""),
        (("a", "1", "2"), "012", ""),  # numbers that --num-classes added
        (("a_b", "a b", "c"), ("a_b", "a b", "c"), ""),
        (("a b", "a_b", "c"), ("a_b", "a b", "c"), "'a_b' is number 0 of the data and 1 of the model"),
        (("A_b", "c", "d"), ("a b", "C", "d"), ""),
        (("c", "A_b", "d"), ("a b", "c", "d"), "'a b' is number 0 of the data and 1 of the model"),
        (("a_b", "a b", "c"), ("A_B", "b", "c"), ""),  # either may be meant: only the number is compared
    ],
)
def test_classes_are_compared_by_name_first(known, names, problem):
    model = timm.create_model(MODEL, num_classes=3)
    model.pretrained_cfg = {"label_names": list(known) or None}
    if problem:
        with pytest.raises(UserError, match=problem):
            match_classes(model, list(names))
    else:
        assert match_classes(model, list(names)).names == tuple(names)


def test_no_two_names_have_one_place():
    assert places_of(["a_b", "A b", "c"], ["a b", "c", "a_b"]) == [2, None, 1]
    assert places_of(["a_b", "A b"], ["A B", "c"]) == [None, None]
    assert places_of(["crane", "kite"], ["crane", "kite", "crane"]) == [None, 1]


@pytest.fixture(scope="session")
def thousand():
    return timm.create_model(MODEL)


def test_imagenet_and_its_relatives(thousand):
    synsets = ImageNetInfo().label_names()
    classes = match_classes(thousand, synsets)
    assert classes.count == 1000 and not classes.valid
    assert identify(classes, 50000) == "imagenet-1k" and identify(classes, 50889) == "imagenet-sketch"
    numbers = match_classes(thousand, [str(number) for number in range(1000)])
    assert identify(numbers, 10000) == "imagenet-v2" and identify(numbers, 50000) == "imagenet-1k"
    for subset in ("a", "r"):
        folder = os.path.join(os.path.dirname(timm.data.__file__), "_info")
        with open(os.path.join(folder, f"imagenet_{subset}_synsets.txt")) as stream:
            names = stream.read().split()
        with open(os.path.join(folder, f"imagenet_{subset}_indices.txt")) as stream:
            indices = tuple(int(line) for line in stream)
        found = match_classes(thousand, names)
        assert found.valid == indices and found.count == 200 and found.dataset == f"imagenet-{subset}"
    with pytest.raises(UserError, match="999 classes"):
        match_classes(thousand, synsets[1:])
    with pytest.raises(UserError, match="another order: 'n01443537' is number 0 of the data and 1 of the model"):
        match_classes(thousand, [synsets[1], synsets[0], *synsets[2:]])
    with pytest.raises(UserError, match="do not run from 0 to 999"):
        match_classes(thousand, [str(number) for number in range(1, 1001)])


def test_data_without_names_is_known_by_its_count_alone(thousand):
    """ImageNet's or CIFAR-10's model may be measured on anything, and its figure is of its own data."""
    for names, mapped in (((), False), (("a", "b"), True)):
        classes = match_classes(thousand, names, mapped=mapped)
        assert not classes.dataset
        assert (identify(classes, 50000), identify(classes, 10000)) == ("imagenet-1k", "")
        small = match_classes(timm.create_model("lambdaresnet32px.cifar10"), names, mapped=mapped)
        assert not small.dataset
        assert [identify(small, count) for count in (10000, 1017, 50000)] == ["cifar10", "cifar10", ""]


def test_real_labels_are_of_all_outputs(thousand):
    check_real(match_classes(thousand, ()))
    for classes in (match_classes(thousand, (), range(1000)[:200]), Classes(10)):
        with pytest.raises(UserError, match="--real-labels are of ImageNet's 1000 classes"):
            check_real(classes)


def test_valid_labels_compare_some_outputs(validate, tmp_path, rows):
    """As timm's validate.py: the data's classes stand for the outputs named."""
    keep = [number for number, row in enumerate(rows) if row[0] in (1, 4)]
    data = write_folder(tmp_path / "two", [rows[number] for number in keep])
    numbers, path = tmp_path / "valid.txt", tmp_path / "rows.csv"
    numbers.write_text("1\n4\n")
    assert validate("--data", data, "--valid-labels", numbers, "--results", path)[0] == 0
    row = row_of(path)
    assert row["count"] == str(len(keep)) and float(row["top5"]) == 100
    numbers.write_text("1\n4\n5\n")
    one_line(validate("--data", data, "--valid-labels", numbers), "--valid-labels")
    numbers.write_text("one\n")
    one_line(validate("--data", data, "--valid-labels", numbers), "valid.txt", "a number a line")


def test_real_labels_score_images_that_have_any(command, tmp_path, rows, thousand, expected):
    """Three images: one right by ReaL alone, one wrong, one without labels, which is not scored."""
    weights = tmp_path / "thousand.safetensors"
    save_file(thousand.state_dict(), weights)
    synsets = ImageNetInfo().label_names()
    for synset in synsets:
        (tmp_path / "data" / synset).mkdir(parents=True)
    for number in range(3):
        (tmp_path / "data" / synsets[number] / f"ILSVRC2012_val_{number + 1:08d}.JPEG").write_bytes(rows[number][1])
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(synsets))
    base = ("validate", "--model", MODEL, "--checkpoint", weights, *BASE, "--data", tmp_path / "data",
            "--class-map", names, "--results", tmp_path / "rows.csv")  # fmt: skip
    thousand.eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(thousand))

    first = [
        int(thousand(transform(Image.open(path).convert("RGB"))[None]).argmax())
        for path in sorted((tmp_path / "data").glob("*/*.JPEG"))
    ]
    labels = [[first[0], 1], [(first[1] + 1) % 1000], []] + [[0]] * 49997
    real = tmp_path / "real.json"
    real.write_text(json.dumps(labels))
    assert command(*base, "--real-labels", real)[0] == 0
    row = row_of(tmp_path / "rows.csv")
    assert (row["count"], row["top1"], row["dataset"]) == ("2", "50.0000", "imagenet-real")
    assert command(*base, "--real-labels")[0] == 0  # timm's own copy
    assert row_of(tmp_path / "rows.csv")["count"] in ("1", "2", "3")
    real.write_text("[[1]]")  # another content, so no run of it is finished
    one_line(command(*base, "--real-labels", real), "real.json", "50000")


def lay_out(root, names):
    """A folder for each class as the data sets have them; the images are only looked for, not opened."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "a.JPEG").touch()
    return root


def test_numbered_folders_are_ordered_as_numbers(thousand, tmp_path):
    """ImageNet-V2's are 0 to 999; sorted as text, 10 would be class 2, and the figure that of chance."""
    root = lay_out(tmp_path / "v2", map(str, range(1000)))
    data = open_source(Source(str(root)))
    classes = match_classes(thousand, data.classes)
    assert identify(classes, 10000) == "imagenet-v2" and not classes.valid
    samples = data.images.dataset.reader.samples
    assert len(samples) == 1000 and all(int(os.path.basename(os.path.dirname(path))) == y for path, y in samples)
    tar = write_tar(tmp_path / "v2.tar", [(f"v2/{name}/a.JPEG", b"-") for name in sorted(map(str, range(1000)))])
    data = open_source(Source(str(tar)))
    assert identify(match_classes(thousand, data.classes), 10000) == "imagenet-v2"
    reader = data.images.dataset.reader
    names = [reader.filename(index) for index in range(len(reader))]
    assert [int(name.split("/")[-2] if "/" in name else -1) for name in names] == list(reader.targets)
    by_text = open_source(Source(str(root), dataset="torch/image_folder"))  # torchvision sorts them as text
    with pytest.raises(UserError, match="do not run from 0 to 999"):
        match_classes(thousand, by_text.classes)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "imagenet-sketch"])
def test_folders_of_imagenets_relatives(thousand, tmp_path, name):
    """Each image is held against the output of its synset, among the outputs that the data set has."""
    synsets = list(ImageNetInfo().label_names())
    names = synsets
    if name != "imagenet-sketch":
        path = os.path.join(os.path.dirname(timm.data.__file__), "_info", f"{name.replace('-', '_')}_synsets.txt")
        with open(path) as stream:
            names = stream.read().split()
    data = open_source(Source(str(lay_out(tmp_path / name, names))))
    classes = match_classes(thousand, data.classes)
    assert identify(classes, 50889 if name == "imagenet-sketch" else 7500) == name
    outputs = classes.valid or range(1000)
    for path, target in data.images.dataset.reader.samples:
        assert synsets[outputs[target]] == os.path.basename(os.path.dirname(path))


def test_a_class_map_that_would_be_ignored_is_refused(validate, tmp_path, rows):
    data = write("folder", tmp_path, rows)
    outcome = validate("--dataset", "torch/image_folder", "--data", data, "--class-map", __file__)
    one_line(outcome, "--class-map", "torch/image_folder", "--data")
