"""Images of kinds that timm does not read: told once, by every command that reads folders."""

import shutil

import pytest
import timm.data
from command import one_line
from train.train_runs import tiny, write_images
from validation_sets import BASE, COUNT, MODEL, NAMES, pictures, row_of, write_folder

from lambdaresnet_zoo.tasks import passed_over
from lambdaresnet_zoo.tasks.passed_over import KINDS, count_passed, read_folder

TOLD = "passed over 4 files of kinds that are not read: 3 .heic, 1 .avif; convert such to JPEG or PNG"


@pytest.fixture
def data(tmp_path):
    """The pictures, with images that are passed over and with files that are none."""
    root = write_folder(tmp_path / "data", pictures())
    for name in (
        "ant/a.heic",
        "ant/b.HEIC",
        "zebra/c.heic",
        "ant/d.avif",
        "ant/notes.txt",
        "ant/.DS_Store",
        "list.csv",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_validate_tells(validate, data, tmp_path):
    results = tmp_path / "rows.csv"
    status, _, err = validate("--data", data, "--results", results)
    assert status == 0 and err == [f"{data}: {TOLD}"]
    with_them = row_of(results)
    plain = write_folder(tmp_path / "plain", pictures())
    assert validate("--data", plain, "--results", results)[::2] == (0, [])
    figures = ("top1", "top5", "loss", "count")
    assert [with_them[name] for name in figures] == [row_of(results)[name] for name in figures]
    assert with_them["count"] == str(COUNT)


def test_predict_tells_of_all_its_folders_at_once(command, checkpoint, data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "e.webp").write_bytes(b"")
    own = ("predict", "--model", MODEL, "--checkpoint", checkpoint)
    status, out, err = command(*own, data)
    assert status == 0 and err == [TOLD] and sum(not line.startswith(" ") for line in out) == COUNT
    status, _, err = command(*own, data, other)
    assert status == 1 and "5 files" in err[0] and "3 .heic, 1 .avif, 1 .webp" in err[0]
    assert err[1].startswith(f"error: {other}: a folder without images")
    assert command(*own, data / "ant" / "000.jpg")[2] == []


def test_label_tells(command, checkpoint, data, tmp_path):
    own = ("label", "--teacher", MODEL, "--checkpoint", checkpoint, *BASE, "--out", tmp_path / "out")
    status, out, err = command(*own, "--data", data)
    assert status == 0 and err[0] == f"{data}: {TOLD}" and f"{COUNT} images" in out[0]


def test_train_tells(command, tmp_path):
    data = write_images(tmp_path / "train", 4).parent
    write_images(data / "val", 2)
    for name in ("train/red/a.tif", "train/red/b.gif", "train/green/c.gif", "val/red/d.jxl"):
        (data / name).write_bytes(b"")
    status, _, err = command("train", *tiny(data), "--output", tmp_path / "run", "--epochs", 1)
    assert status == 0 and len(err) == 2
    assert err[0].startswith(f"{data / 'train'}: passed over 3 files") and "2 .gif, 1 .tif;" in err[0]
    assert err[1].startswith(f"{data / 'val'}: passed over 1 file of kinds") and "1 .jxl;" in err[1]


def test_a_folder_of_nothing_else_is_one_line(validate, tmp_path):
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.webp").write_bytes(b"")
    one_line(validate("--data", tmp_path / "data"), tmp_path / "data", "no images that can be read", "7 .webp")


def test_kinds_that_timm_was_told_of_are_read(data):
    added = (".heic", ".avif")
    timm.data.add_img_extensions(added)
    try:
        assert count_passed(["a.heic", "a.avif"]).total() == 0
        assert len(read_folder(str(data))) == COUNT + 4
    finally:
        timm.data.del_img_extensions(added)
    assert not set(KINDS) & set(timm.data.get_img_extensions())


def test_extensions_that_the_user_names_are_not_told(data, capsys):
    assert len(read_folder(str(data), ".heic")) == 3
    assert capsys.readouterr().err == ""


def test_another_process_than_the_first_is_silent(data, capsys, monkeypatch):
    monkeypatch.setattr(passed_over, "is_first", lambda: False)
    read_folder(str(data))
    assert capsys.readouterr().err == ""


def test_the_reader_is_timms(data):
    """Samples and classes, in their order, are those of a folder without the images that are passed over."""
    found = read_folder(str(data))
    shutil.rmtree(data / "zebra")
    expected = timm.data.create_dataset("", root=str(data)).reader
    assert found.samples == expected.samples and found.class_to_idx == expected.class_to_idx
