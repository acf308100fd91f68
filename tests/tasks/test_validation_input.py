"""`validate`: what stops it, what it leaves out, and what it writes."""

import io
import json
import math
import os
import shutil
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import timm
from command import one_line
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset
from validation_sets import (
    BASE,
    COUNT,
    MODEL,
    NAMES,
    counts,
    photographs,
    pictures,
    row_of,
    timm_figures,
    write,
    write_folder,
    write_shards,
    write_tar,
)

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks import validation_report
from lambdaresnet_zoo.tasks.validation_data import Source, open_source
from lambdaresnet_zoo.tasks.validation_report import FIELDS, Results, reference, wilson
from lambdaresnet_zoo.weights.cards import CIFAR10
from lambdaresnet_zoo.weights.files import read_rows


def damaged(rows, *numbers):
    """Cut the files of some pictures in half, so that their headers are still good."""
    return [(y, x[: len(x) // 2] if number in numbers else x) for number, (y, x) in enumerate(rows)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "webdataset"])
def test_a_truncated_image_stops_the_run_and_is_named(validate, tmp_path, rows, kind, workers):
    data = write(kind, tmp_path, damaged(rows, 9))
    parts = ["009", "damaged", "--skip-bad", "test-0.tar" if kind == "webdataset" else ""]
    one_line(validate("--data", data, "--workers", workers), *parts)


def source(kind, root, rows):
    """Rows in a form, as the command is told of it."""
    data = write("parquet" if kind == "hfids" else kind, root, rows)
    return ["--dataset", f"hfids/{data}"] if kind == "hfids" else ["--data", data]


FIGURES = ("top1", "top5", "loss", "count")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "webdataset", "hfids"])
def test_photographs_are_as_stored_and_where_asked_as_shown(validate, checkpoint, tmp_path, kind, workers):
    shown, stored = photographs()
    results = ("--results", tmp_path / "rows.csv", "--workers", workers)
    status, _, err = validate(*source(kind, tmp_path / "stored", [*stored[:-2], *shown[-2:]]), *results)
    assert status == 0 and err == [
        "warning: 21 images have an EXIF orientation and stayed as stored, as timm leaves them; train, label and "
        "predict turn such, and so does validate --upright"
    ]
    folder = write_folder(tmp_path / "plain", [*stored[:-2], *shown[-2:]])
    right, right5, loss = timm_figures(MODEL, checkpoint, folder, 256)
    assert counts(row_of(tmp_path / "rows.csv")) == (right, right5)
    assert float(row_of(tmp_path / "rows.csv")["loss"]) == pytest.approx(loss, abs=2e-6)
    rows = []
    for root, given, more in (("stored", stored, ["--upright"]), ("shown", shown, [])):
        status, _, err = validate(*source(kind, tmp_path / "more" / root, given), *results, *more)
        assert status == 0 and err == []
        rows.append(row_of(tmp_path / "rows.csv"))
    assert [rows[0][name] for name in FIGURES] == [rows[1][name] for name in FIGURES]
    assert "upright=True" in rows[0]["options"] and float(rows[0]["loss"]) != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "webdataset", "hfids"])
def test_16_bits_are_scaled_as_predict_scales_them(validate, tmp_path, kind):
    rows = []
    for root, wide in (("wide", True), ("narrow", False)):
        given = []
        for label, content in pictures():
            grey = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
            stream = io.BytesIO()
            Image.fromarray(grey.astype(np.uint16) * 257 if wide else grey).save(stream, "PNG")
            given.append((label, stream.getvalue()))
        data = source(kind, tmp_path / root, given)
        assert validate(*data, "--results", tmp_path / "rows.csv")[0] == 0
        rows.append(row_of(tmp_path / "rows.csv"))
    assert [rows[0][name] for name in FIGURES] == [rows[1][name] for name in FIGURES]


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "hfids"])
def test_damaged_images_are_left_out_counted_and_listed(validate, tmp_path, rows, kind):
    spared = [row for number, row in enumerate(rows) if number not in (9, 17)]
    path = tmp_path / "rows.csv"
    validate("--data", write("folder", tmp_path / "good", spared), "--results", path)
    expected = row_of(path)
    data = write("parquet" if kind == "hfids" else kind, tmp_path / "bad", damaged(rows, 9, 17))
    more = ["--dataset", f"hfids/{data}"] if kind == "hfids" else ["--data", data]
    status, out, err = validate(*more, "--skip-bad", "--results", path, "--batch-size", 1)
    row = row_of(path)
    assert status == 0 and len(err) == 2 and all(any(name in line for line in err) for name in ("009", "017"))
    assert all(line.startswith("left out: ") for line in err)
    assert "[incomplete]" in out[0] and any("2 left out" in line for line in out)
    assert row["bad"] == "2" and row["status"] == "incomplete" and row["count"] == str(COUNT - 2)
    assert counts(row) == counts(expected)


def test_a_truncated_tar_of_webdataset_stops_the_run(validate, tmp_path, rows):
    data = write_shards(tmp_path / "wds", rows)
    shard = data / "test-1.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    for more in ((), ("--workers", 2), ("--skip-bad",)):
        one_line(validate("--data", data, *more), "test-1.tar", "unexpected end of data", "get it again")


def test_missing_empty_and_foreign_data(validate, tmp_path):
    one_line(validate("--data", tmp_path / "nowhere"), "nowhere", "no such file or folder")
    (tmp_path / "empty").mkdir()
    one_line(validate("--data", tmp_path / "empty"), "empty", "0 images")
    (tmp_path / "a.zip").write_bytes(b"PK")
    one_line(validate("--data", tmp_path / "a.zip"), "a.zip", "neither a folder nor a .tar")
    (tmp_path / "a.tar").write_bytes(b"no tar")
    one_line(validate("--data", tmp_path / "a.tar"), "a.tar", "no readable tar")
    one_line(validate(), "--data")
    one_line(validate("--dataset", f"hfds/{tmp_path}/none"), "none", "cannot be read")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "test.parquet").write_bytes(b"PAR1")
    one_line(validate("--data", tmp_path / "p"), "cannot be read")


def test_a_checkpoint_of_another_architecture(validate, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("lambdaresnet32px").state_dict(), path)
    one_line(validate("--data", tmp_path, weights=path), "other.safetensors")
    one_line(validate("--data", tmp_path, weights=tmp_path / "no.pth"), "no.pth", "no such file")
    one_line(validate("--data", tmp_path, name="lambdaresnet5"), "lambdaresnet5", "did you mean")


def test_training_images_are_not_taken_for_others(validate, tmp_path, rows):
    write_folder(tmp_path / "train", rows[:10])
    write_folder(tmp_path / "extra", rows)
    one_line(validate("--data", tmp_path), "train", "to validate on")
    (tmp_path / "extra").rename(tmp_path / "val")
    assert validate("--data", tmp_path)[0] == 0
    assert any(f"images       {COUNT}" in line for line in validate("--data", tmp_path)[1])
    one_line(validate("--data", tmp_path, "--split", "tset"), "tset", "train, val")
    one_line(validate("--data", tmp_path / "val", "--num-classes", 10), "--num-classes 10", "7 classes")


def test_a_split_is_one_of_the_folders_or_refused(validate, tmp_path, rows):
    write_folder(tmp_path / "train", rows[:10])
    one_line(validate("--data", tmp_path, "--split", "val"), "no folder 'val' but train")
    write_folder(tmp_path / "val", rows)
    one_line(validate("--data", tmp_path, "--split", "test"), "no folder 'test' but train, val")
    for split, count in (("validation", COUNT), ("eval", COUNT), ("training", 10)):
        path = tmp_path / f"{split}.csv"
        assert validate("--data", tmp_path, "--split", split, "--results", path, "--batch-size", 5)[0] == 0
        assert row_of(path)["count"] == str(count)


def test_a_split_of_data_that_has_none_is_refused_but_for_timms_own(validate, tmp_path, rows):
    data = write_folder(tmp_path / "data", rows)
    named = write_tar(tmp_path / "some-test.tar", [(f"{NAMES[y]}/{n}.jpg", x) for n, (y, x) in enumerate(rows)])
    for split in ("foo", "test", "val[:10]"):
        told = f"no folder '{split}' and no splits, its folders are classes (ant, bee, cat, ...); leave out --split"
        one_line(validate("--data", data, "--split", split), data, told)
    one_line(validate("--data", named, "--split", "foo"), named, "one tar", "'foo'", "leave out --split")
    assert validate("--data", named, "--split", "test")[0] == 0
    for split in ("validation", "val", "train"):  # of which timm's scripts name one where none is given
        assert create_dataset("", root=str(data), split=split).reader.root == str(data)
        assert validate("--data", data, "--split", split)[0] == 0


@pytest.mark.parametrize("form", ["shards", "tars"])
def test_a_split_is_taken_from_the_names_of_tars(validate, tmp_path, rows, form):
    """Words of the names count, not parts of words; training images are not measured with others."""

    def add(name, rows, root=tmp_path / "tars"):
        if form == "shards":
            rows = [
                (f"{n}.{end}", part) for n, (y, x) in enumerate(rows) for end, part in (("jpg", x), ("cls", b"%d" % y))
            ]
        else:
            rows = [(f"{NAMES[y]}/{n}.jpg", x) for n, (y, x) in enumerate(rows)]
        write_tar(root / name, rows)

    def count(*more):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        status, _, err = validate("--data", tmp_path / "tars", "--results", path, "--batch-size", 8, *more)
        assert status == 0, err
        return int(row_of(path)["count"])

    add("contest-train-0.tar", rows[:10])
    one_line(validate("--data", tmp_path / "tars", "--split", "test"), "'test'", "contest-train-0.tar")
    one_line(validate("--data", tmp_path / "tars"), "contest-train-0.tar", "--split")
    add("contest-val-0.tar", rows[:12])
    add("contest-val-1.tar", rows[12:])
    assert count() == count("--split", "validation") == COUNT
    assert count("--split", "train") == 10
    add("contest-more.tar", rows)
    one_line(validate("--data", tmp_path / "tars"), "contest-more.tar", "--split")
    assert count("--split", "val") == COUNT


def test_parquet_is_not_looked_for_in_every_folder_of_images(tmp_path, rows):
    """Beside the pictures of a class it is no data; looking there would walk all of ImageNet."""
    (write_folder(tmp_path / "val", rows) / "ant" / "features.parquet").write_bytes(b"PAR1")
    assert open_source(Source(str(tmp_path))).kind == "folder"


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
@pytest.mark.parametrize("workers", [0, 1])
def test_labels_and_keys_of_another_kind_are_told_as_that(validate, tmp_path, rows, kind, workers):
    """They are wrong for every image, and no image is damaged: --skip-bad does not go over them."""
    rows = [{"image": {"bytes": x}, "label": NAMES[y], "list": [y]} for y, x in rows]
    meta = {"huggingface": json.dumps({"info": {"features": {
        "image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "string"},
        "list": {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "int64"}},
    }}})}  # fmt: skip
    (tmp_path / "data").mkdir()
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(meta)
    pyarrow.parquet.write_table(table, tmp_path / "data" / "test.parquet")
    base = ("--dataset", f"{kind}/{tmp_path / 'data'}", "--split", "test", "--workers", workers, "--skip-bad")
    one_line(validate(*base), "label 'ant' is no class number; --class-map FILE maps names")
    one_line(validate(*base, "--target-key", "list"), "label [0] is no class number")
    one_line(validate(*base, "--target-key", "labl"), "has no 'labl'", "--target-key")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES).replace("cat", "lynx"))
    one_line(validate(*base, "--class-map", names), "label 'cat' is not in the class map")


@pytest.mark.parametrize("key", ["--input-key", "--target-key"])
def test_a_wrong_key_of_webdataset_is_no_damage(validate, tmp_path, rows, key):
    data = write_shards(tmp_path / "wds", rows)
    outcome = validate("--data", data, key, "foo", "--skip-bad")
    one_line(outcome, key, "foo" if key == "--input-key" else "json sidecar")
    assert "damaged" not in " ".join(outcome[2])
    members = [("0.jpg", rows[0][1]), ("0.cls", b"cat")]
    one_line(validate("--data", write_tar(tmp_path / "a.tar", members), "--skip-bad"), "label 'cat' is no class number")


def test_files_of_results_are_not_spoilt(validate, tmp_path, rows):
    data = write_folder(tmp_path / "data", rows)
    other = tmp_path / "other.csv"
    other.write_text("model,top1\nx,1\n")
    one_line(validate("--data", data, "--results", other), "other.csv", "other columns")
    assert other.read_text() == "model,top1\nx,1\n"
    (tmp_path / "bad.json").write_text("{")
    one_line(validate("--data", data, "--results", tmp_path / "bad.json"), "bad.json", "cannot be read")
    one_line(validate("--data", data, "--results", tmp_path / "rows.txt"), ".csv or .json")


def test_the_interval_is_wilsons():
    """Its bounds are the proportions that a test at 5 % just does not reject."""
    for correct, count in ((8231, 10000), (0, 10), (10, 10), (1, 3)):
        for bound in wilson(correct, count):
            share = bound / 100
            distance = 1.959963984540054 * math.sqrt(share * (1 - share) / count)
            assert abs(correct / count - share) == pytest.approx(distance, abs=1e-6)
    assert wilson(0, 0) == (0, 100)


def test_which_figure_is_published():
    figure = reference("lambdaresnet26t", "c1_in1k", "imagenet-1k", 50000, 256)
    assert figure["top1"] == "79.126" and figure["source"] and not figure["note"]
    assert reference("lambdaresnet26t", "", "imagenet-1k", 50000, 256) == {}
    for setting, part in (((50000, 224), "256 pixels"), ((500, 256), "50000 images"), ((50000, 256, 0.875), "0.94")):
        other = reference("lambdaresnet26t", "c1_in1k", "imagenet-1k", *setting)
        assert part in other["note"] and "not compared" in other["note"] and "top1" not in other
    second = reference("lambdaresnet26t", "c1_in1k", "imagenet-v2", 10000, 256)
    assert second["top1"] == "67.700" and "matched-frequency" in second["note"]
    assert reference("lambdaresnet26t", "c1_in1k", "imagenet-real", 46837, 256)["top1"] == "85.334"
    assert reference("lambdaresnet26t", "c1_in1k", "imagenet-sketch", 50889, 256) == {}
    paper = reference("lambdaresnet152", "", "imagenet-1k", 50000, 256)
    assert paper["top1"] == "83.8" and not paper["note"]
    assert reference("lambdaresnet152", "", "imagenet-1k", 50000, 224)["top1"] == "83.2"
    (row,) = read_rows(CIFAR10)
    assert reference("lambdaresnet32px", "cifar10", "cifar10", 10000, 32)["top1"] == row["top1"]
    assert reference("lambdaresnet32px", "cifar10", "cifar10", 1017, 32)["top1"] == row["top1_lossless"]
    assert reference("lambdaresnet32px", "cifar10", "cifar10", 500, 32) == {}
    assert reference("lambdaresnet32px", "cifar10", "cifar10", 10000, 64) == {}
    assert reference("lambdaresnet32px", "", "cifar10", 10000, 32) == {}  # weights of one's own


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_two_runs_that_share_a_file_lose_no_row(tmp_path, suffix):
    """Each reads the file before the other has written; threads meet at the lock as processes do."""
    path = tmp_path / f"rows.{suffix}"
    writers = [Results(str(path)) for _ in range(8)]
    together = threading.Barrier(len(writers))

    def add(number):
        together.wait()
        for part in range(4):
            writers[number].add(dict.fromkeys(FIELDS, "") | {"model": f"{number}-{part}"})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["model"] for row in Results(str(path)).rows) == [f"{n}-{m}" for n in range(8) for m in range(4)]


def test_a_file_that_is_locked_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_report, "LOCKED", 0.2)
    path = tmp_path / "rows.csv"
    with FileLock(tmp_path / ".rows.csv.lock"), pytest.raises(UserError, match=r"rows.csv .* locked it for 0.2 s"):
        Results(str(path)).add(dict.fromkeys(FIELDS, ""))
    assert not path.exists()


def test_weights_of_the_hub_are_known_by_their_content(hub, checkpoint, command, tmp_path, rows):
    """A branch that moves is another run; the same weights, by whatever revision, are the same."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(NAMES))
    folder = tmp_path / "saved"
    assert command("convert", checkpoint, folder, "--labels", labels, "--license", "mit")[0] == 0
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    hub.add("me/net", files)
    base = ("validate", "--model", "hf-hub:me/net", *BASE, "--data", write("folder", tmp_path, rows))
    base += ("--results", tmp_path / "rows.csv")
    assert command(*base)[0] == 0
    assert "finished in" in command(*base)[1][0]
    other = timm.create_model(MODEL, num_classes=len(NAMES))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    shutil.rmtree(folder)
    assert command("convert", tmp_path / "other.safetensors", folder, "--labels", labels, "--license", "mit")[0] == 0
    hub.add("me/net", files)
    status, out, err = command(*base)
    assert status == 0 and "finished in" not in out[0], err
    first, second = read_rows(tmp_path / "rows.csv")
    assert first["loss"] != second["loss"] and first["checkpoint"] != second["checkpoint"]
    one_line(command(*base[:2], "hf-hub:me/nothing", *base[3:]), "me/nothing")
