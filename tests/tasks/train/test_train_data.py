"""Data to train on in every form, held out and damaged; and bad input, told in one line before training."""

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from command import one_line
from PIL import Image
from train_runs import COLOURS, equal, weights, write_images
from validation_sets import write_tar

from lambdaresnet_zoo.tasks.train.data import open_data
from lambdaresnet_zoo.tasks.train.options import TrainOptions
from lambdaresnet_zoo.tasks.train.samples import TrainSamples, TrainStream
from lambdaresnet_zoo.weights.files import read_rows

NAMES = tuple(COLOURS)


def rows(root):
    """Class and content of the images in a folder, classes mixed."""
    found = [(NAMES.index(path.parent.name), path.read_bytes()) for path in sorted(root.rglob("*.png"))]
    return [found[number] for number in np.random.default_rng(0).permutation(len(found))]


def write_form(kind, source, root):
    """The coloured pictures in another form."""
    if kind == "folder":
        return source
    for split, name in (("train", "train"), ("val", "validation")):
        pictures = rows(source / split)
        if kind == "parquet":
            root.mkdir(exist_ok=True)
            table = [{"image": {"bytes": x, "path": f"{n}.png"}, "label": y} for n, (y, x) in enumerate(pictures)]
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}
            meta = {"huggingface": json.dumps({"info": {"features": features}})}
            table = pyarrow.Table.from_pylist(table).replace_schema_metadata(meta)
            pyarrow.parquet.write_table(table, root / f"{name}.parquet")
        elif kind == "tar":
            write_tar(root / f"{name}.tar", [(f"{NAMES[y]}/{n:03d}.png", x) for n, (y, x) in enumerate(pictures)])
        else:
            write_shards(root, name, pictures)
    return root


def write_shards(root, name, pictures, shards=2):
    path = root / "_info.json"
    info = json.loads(path.read_text()) if path.exists() else {"splits": {}}
    names, lengths = [], []
    for shard in range(shards):
        part = list(enumerate(pictures))[shard::shards]
        names.append(f"{name}-{shard}.tar")
        lengths.append(len(part))
        pairs = [(f"{n:03d}.{end}", data) for n, (y, x) in part for end, data in (("png", x), ("cls", b"%d" % y))]
        write_tar(root / names[-1], pairs)
    split = {"name": name, "num_samples": len(pictures), "filenames": names, "shard_lengths": lengths}
    info["splits"][name] = split
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar", "webdataset"])
def test_every_form_is_trained_and_evaluated_on(train, coloured, tmp_path, kind):
    data = write_form(kind, coloured, tmp_path / kind)
    more = ("--num-classes", 3) if kind == "webdataset" else ()
    status, out, err = train("--output", tmp_path / "run", "--epochs", 2, *more, data=data)
    assert (status, err) == (0, [])
    assert ": 36 images, 3 classes" in out[1] and "evaluated on 12 images" in out[1]
    assert "on 12 images" in out[-1]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["label_names"] == (["0", "1", "2"] if kind == "webdataset" else list(NAMES))


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_photographs_are_trained_and_evaluated_on_as_they_are_shown(train, coloured, tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    shutil.copytree(coloured, tmp_path / "stored")
    for path in (tmp_path / "stored").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    more = ("--num-classes", 3) if kind == "webdataset" else ()
    for name, source in (("one", coloured), ("two", tmp_path / "stored")):
        data = write_form(kind, source, tmp_path / f"{kind}-{name}")
        assert train("--output", tmp_path / name, "--epochs", 1, *more, data=data)[0] == 0
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    one, two = (read_rows(tmp_path / name / "summary.csv")[0] for name in ("one", "two"))
    assert [one[name] for name in ("eval_loss", "eval_top1")] == [two[name] for name in ("eval_loss", "eval_top1")]


def test_tar_of_one_file_and_no_split_holds_some_out(train, coloured, tmp_path):
    path = write_form("tar", coloured, tmp_path / "tars") / "train.tar"
    status, out, err = train("--output", tmp_path / "run", "--epochs", 1, "-b", 8, data=path)
    assert (status, err) == (0, []) and "33 images, 3 classes" in out[1]
    assert "evaluated on 3 images, held out of these" in out[1]


def test_what_is_held_out_is_never_trained_on(coloured):
    whole = open_data(TrainOptions(data=str(coloured / "train"), val_fraction=0.25))
    assert (whole.count, whole.validation.count, whole.held_out) == (27, 9, True)
    kept, held = set(whole.images.indices), set(whole.validation.images.indices)
    assert not kept & held and len(kept | held) == 36
    again = open_data(TrainOptions(data=str(coloured / "train"), val_fraction=0.25, seed=7))
    assert again.images.indices == whole.images.indices
    targets = [whole.validation.images.pair(number)[1] for number in range(9)]
    assert sorted(targets) == [0] * 3 + [1] * 3 + [2] * 3


def test_processes_share_what_is_evaluated(coloured):
    parts = [open_data(TrainOptions(data=str(coloured)), process, 2).validation.images for process in (0, 1)]
    indices = [set(part.indices) for part in parts]
    assert not indices[0] & indices[1] and len(indices[0] | indices[1]) == 12


def test_classes_of_validation_stand_where_training_has_them(train, tmp_path):
    """Validation lacks the first class: its folders are numbered otherwise."""
    write_images(tmp_path / "train", 12)
    write_images(tmp_path / "val", 4, NAMES[1:], seed=1)
    data = open_data(TrainOptions(data=str(tmp_path)))
    assert {data.validation.images.pair(number)[1] for number in range(8)} == {1, 2}


def test_samples_depend_on_seed_and_number_alone(coloured):
    data = open_data(TrainOptions(data=str(coloured)))
    one, two = (TrainSamples(data.images, 36, np.asarray, 3) for _ in range(2))
    order = [two[number][1] for number in reversed(range(72))][::-1]
    assert [one[number][1] for number in range(72)] == order
    epochs = [[int(n) for n in one.order(epoch)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == list(range(36))


def test_streams_pass_over_what_was_seen(coloured, tmp_path):
    """A stream that is taken up at a batch gives what the whole one gives there, drawn alike."""
    data = open_data(TrainOptions(data=str(write_form("webdataset", coloured, tmp_path)), num_classes=3))

    def transform(image):
        return torch.tensor([*np.asarray(image).reshape(-1)[:3], np.random.rand(), float(torch.rand(()))])

    def take(skip, count, epoch=0):
        stream = iter(TrainStream(data.reader, transform, 1, 4, epoch, skip))
        return [next(stream) for _ in range(count)]

    whole, rest = take(0, 60), take(5, 20)
    wanted = whole[20:40]
    assert [sample[1] for sample in rest] == [sample[1] for sample in wanted]
    assert all(torch.equal(one[0], two[0]) for one, two in zip(rest, wanted, strict=True))
    images = {tuple(sample[0][:3].tolist()) for sample in whole[:36]}
    assert len(images) > 30  # a pass has every image once
    assert [sample[1] for sample in take(0, 36, epoch=1)] != [sample[1] for sample in whole[:36]]


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])  # where the first worker's batch is next, and where the second's is
def test_a_stopped_run_over_a_stream_ends_as_an_unstopped_one(train, coloured, tmp_path, monkeypatch, step):
    import os
    import signal

    from test_train_loop import after

    data = write_form("webdataset", coloured, tmp_path / "data")
    options = ("--num-classes", 3, "--deterministic", "--workers", 2, "--epochs", 2, "--output")
    assert train(*options, tmp_path / "whole", data=data)[0] == 0
    after(monkeypatch, step, lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert train(*options, tmp_path / "cut", data=data)[0] == 0
    assert train(*options, tmp_path / "cut", "--resume", data=data)[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_damaged_image_of_a_stream_is_replaced(train, coloured, tmp_path):
    """A batch keeps its size, which mixup needs; taken up within the epoch, the stream is the same."""
    source = tmp_path / "images"
    shutil.copytree(coloured, source)
    for name in ("green/03", "red/05"):
        (source / "train" / f"{name}.png").write_bytes(b"no image")
    data = write_form("webdataset", source, tmp_path / "data")
    options = ("--num-classes", 3, "--skip-bad", "--mixup", 0.2, "--batch-size", 6, "--epochs", 2)
    status, _, err = train("--output", tmp_path / "run", *options, data=data)
    assert status == 0 and len(err) == 3 and err[-1] == "left out: 2 damaged images", err
    reader = open_data(TrainOptions(data=str(data), num_classes=3)).reader

    def take(skip, count):
        stream = iter(TrainStream(reader, lambda image: torch.tensor(np.asarray(image)[0, 0]), 1, 4, 0, skip))
        return [next(stream) for _ in range(count)]

    whole, rest = take(0, 60), take(5, 40)
    assert all(image is not None and not broken for image, _, _, broken in whole)
    assert [sample[1:] for sample in rest] == [sample[1:] for sample in whole[20:]]
    assert len({name for *_, problems, _ in whole for name, _ in problems}) == 2


@pytest.fixture
def damaged(tmp_path):
    """A folder with an image that is cut short and one that is none."""
    root = tmp_path / "damaged"
    write_images(root / "train", 12)
    write_images(root / "val", 4, seed=1)
    path = root / "train" / "green" / "03.png"
    path.write_bytes(path.read_bytes()[:900])
    (root / "train" / "red" / "05.png").write_text("no image")
    return root


@pytest.mark.parametrize("check", ["--check-images", "--no-check-images"])
def test_an_image_that_cannot_be_read_is_named(train, damaged, tmp_path, check):
    status, _, err = train("--output", tmp_path / "run", check, data=damaged)
    assert status == 2 and len(err) == 1 and ("03.png" in err[0] or "05.png" in err[0]) and "--skip-bad" in err[0]
    assert not (tmp_path / "run" / "last.pt").exists() or check == "--no-check-images"


@pytest.mark.parametrize("check", ["--check-images", "--no-check-images"])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_left_out_and_counted(train, damaged, tmp_path, check, workers):
    status, out, err = train("--output", tmp_path, check, "--skip-bad", "--workers", workers, data=damaged)
    assert status == 0
    assert sorted(line.split(": ")[0] for line in err[:2]) == ["left out", "left out"]
    assert sum("03.png" in line for line in err) == sum("05.png" in line for line in err) == 1
    assert ("34 images" if check == "--check-images" else "36 images") in out[1]
    assert check == "--check-images" or err[2] == "left out: 2 damaged images"


def test_a_damaged_image_of_validation_is_named_before_training(train, tmp_path):
    write_images(tmp_path / "train", 12)
    write_images(tmp_path / "val", 4, seed=1)
    (tmp_path / "val" / "red" / "01.png").write_text("no image")
    one_line(train("--output", tmp_path / "run", data=tmp_path), "01.png", "not an image")
    status, out, err = train("--output", tmp_path / "run", "--skip-bad", "--epochs", 1, data=tmp_path)
    assert status == 0 and "on 11 images" in out[-1] and sum("01.png" in line for line in err) == 1


def test_a_class_without_image(train, tmp_path):
    write_images(tmp_path / "train", 12)
    (tmp_path / "train" / "violet").mkdir()
    one_line(train("--output", tmp_path / "run", data=tmp_path), "the class 'violet' has no image")
    (tmp_path / "train" / "violet" / "notes.txt").write_text("none yet")
    one_line(train("--output", tmp_path / "run", data=tmp_path), "the class 'violet' has no image")
    assert not (tmp_path / "run" / "args.yaml").exists()


def test_what_is_no_class_is_told(train, tmp_path):
    write_images(tmp_path / "train", 12)
    stray = tmp_path / "train" / "cover.png"
    shutil.copy(tmp_path / "train" / "red" / "00.png", stray)
    one_line(train("--output", tmp_path / "run", data=tmp_path), stray, "in no class's folder")
    hidden = tmp_path / "train" / "red" / ".ipynb_checkpoints"
    hidden.mkdir()
    stray.rename(hidden / "00.png")
    one_line(train("--output", tmp_path / "run", data=tmp_path), hidden, "is no class; remove it")
    shutil.rmtree(hidden)
    (tmp_path / "train" / "__MACOSX").mkdir()
    assert train("--output", tmp_path / "run", "--epochs", 1, data=tmp_path)[0] == 0


def test_a_class_of_the_features_without_image(train, coloured, tmp_path):
    data = write_form("parquet", coloured, tmp_path / "data")
    table = pyarrow.parquet.read_table(data / "train.parquet")
    keep = [label != 1 for label in table["label"].to_pylist()]
    pyarrow.parquet.write_table(table.filter(pyarrow.array(keep)), data / "train.parquet")
    one_line(train("--output", tmp_path / "run", data=data), "the class 'green' has no image")


def test_a_class_that_training_lacks(train, tmp_path):
    write_images(tmp_path / "train", 12, NAMES[:2])
    write_images(tmp_path / "val", 4)
    one_line(train("--output", tmp_path / "run", data=tmp_path), "val: the training images have no class 'red'")


def test_a_split_without_labels_is_told_before_training(train, coloured, tmp_path):
    data = write_form("parquet", coloured, tmp_path / "data")
    table = pyarrow.parquet.read_table(data / "validation.parquet")
    labels = pyarrow.array([-1] * len(table))
    pyarrow.parquet.write_table(table.set_column(1, table.schema.field(1), [labels]), data / "validation.parquet")
    one_line(train("--output", tmp_path / "run", "--no-check-images", data=data), "class -1", "has no labels")
    assert not (tmp_path / "run").exists()


def test_one_class_only(train, tmp_path):
    write_images(tmp_path / "train", 12, NAMES[:1])
    one_line(train("--output", tmp_path / "run", data=tmp_path), "only one class ('blue')", "at least 2")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--img-size", 16), ("--img-size 16", "stride", "32")),
        (("--batch-size", 37), ("--batch-size 37: an update takes 37 images", "has 36")),
        (("--batch-size", 20, "--grad-accum-steps", 2), ("takes 40 images",)),
        (("--batch-size", 9, "--mixup", 0.2), ("--batch-size 9 is odd",)),
        (("--model", "lambdaresnet05"), ("unknown model 'lambdaresnet05'", "lambdaresnet50")),
        (("--model-kwargs", "colour=1"), ("cannot be built",)),
        (("--pretrained",), ("no public weights",)),
        (("--initial-checkpoint", "nowhere.pt"), ("nowhere.pt",)),
        (("--device", "abacus"), ("device 'abacus' cannot be used",)),
        (("--opt", "magic"), ("--opt magic",)),
        (("--sched", "magic"), ("--sched magic",)),
        (("--aa", "magic"), ("augmentation",)),
        (("--warmup-epochs", 3), ("leave nothing of --epochs 3",)),
        (("--freeze", "c9"), ("--freeze c9", "stem, c2, c3, c4, c5, head")),
        (("--freeze", "stem", "c2", "c3", "c4", "c5", "head"), ("leaves nothing to train",)),
        (("--fsdp",), ("torchrun",)),
        (("--recipe", "none.yaml"), ("none.yaml",)),
        (("--set", "speed=1"), ("no option 'speed'",)),
        (("--num-classes", 2), ("--num-classes 2, and the data has 3",)),
        (("--val-data", "nowhere"), ("nowhere: no such file or folder",)),
        (("--train-split", "nothing"), ("no folder 'nothing'",)),
        (("--class-map", "nowhere.txt"), ("nowhere.txt: no such file",)),
        (("--pseudo-labels", "nowhere"), ("nowhere",)),
        (("--dataset", "hfids/nothing/there"), ("hfids/nothing/there",)),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_what_cannot_start_is_one_line(train, tmp_path, arguments, parts):
    one_line(train("--output", tmp_path / "run", *arguments), *parts)
    assert not list((tmp_path / "run").glob("*"))


def test_no_data(command, tmp_path):
    one_line(command("train", "--model", "test_lambdaresnet", "--output", tmp_path), "give the images with --data")
    nowhere = ("--data", tmp_path / "nowhere")
    one_line(command("train", "--model", "test_lambdaresnet", "--output", tmp_path, *nowhere), "nowhere: no such")


def test_streams_say_what_they_need(train, coloured, tmp_path):
    data = write_form("webdataset", coloured, tmp_path / "data")
    one_line(train("--output", tmp_path / "run", data=data), "--num-classes N")
    (data / "_info.json").unlink()
    one_line(train("--output", tmp_path / "run", "--num-classes", 3, data=data), "--train-num-samples N")
    with tarfile.open(data / "train-0.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    write_tar(data / "train-0.tar", [(n, b"none" if n.endswith("png") else c) for n, c in members])
    arguments = ("--output", tmp_path / "run", "--num-classes", 3, "--train-num-samples", 36)
    status, _, err = train(*arguments, data=data)
    assert status == 2 and len(err) == 1 and "--skip-bad" in err[0] and "train-0.tar" in err[0]


def test_a_class_map_gives_the_order(train, coloured, tmp_path):
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    status, _, err = train("--output", tmp_path / "run", "--epochs", 1, "--class-map", tmp_path / "classes.txt")
    assert (status, err) == (0, [])
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["label_names"] == ["red", "green", "blue"]
    assert sum(int(row["red"]) + int(row["blue"]) for row in read_rows(tmp_path / "run" / "confusion.csv")) <= 12


@pytest.mark.parametrize("damage", [False, True], ids=["none held out", "all damaged"])
def test_nothing_to_evaluate_on_makes_no_epoch_the_best(train, tmp_path, damage):
    """Held out of one image a class is none; or none of a split can be decoded."""
    write_images(tmp_path / "train", 1 if not damage else 12)
    if damage:
        for path in write_images(tmp_path / "val", 1).rglob("*.png"):
            path.write_text("no image")
    status, out, _ = train("--output", tmp_path / "run", "--skip-bad", "--batch-size", 3, "--epochs", 2, data=tmp_path)
    assert status == 0 and ("nothing to evaluate on" in out[1]) != damage
    assert "top-1" not in out[-1] and not (tmp_path / "run" / "best.pt").exists()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "0.00" not in card and "top-1" not in card
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert equal(
        {key: value for key, value in last.items() if key in weights(tmp_path / "run")}, weights(tmp_path / "run")
    )


def test_a_class_whose_images_are_all_damaged(train, tmp_path):
    write_images(tmp_path / "train", 12)
    for path in (tmp_path / "train" / "green").iterdir():
        path.write_text("no image")
    options = ("--output", tmp_path / "run", "--val-fraction", 0, "--skip-bad")
    status, out, err = train(*options, data=tmp_path)
    assert (status, out, len(err)) == (2, [], 12)
    assert err[-1].endswith("without damaged images: the class 'green' has no image; add some, or take it out of the "
                            "classes")  # fmt: skip
    shutil.rmtree(tmp_path / "train" / "blue")
    assert "has only one class ('red')" in train(*options, data=tmp_path)[2][-1]


def test_images_of_other_modes_are_trained_on(train, tmp_path):
    for name, mode in (("grey", "L"), ("clear", "RGBA"), ("deep", "I;16")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(12):
            stream = io.BytesIO()
            Image.new(mode, (40, 40), number).save(stream, "PNG")
            (tmp_path / "train" / name / f"{number}.png").write_bytes(stream.getvalue())
    assert train("--output", tmp_path / "run", "--epochs", 1, data=tmp_path)[0] == 0
