"""Outputs that cannot be written are told before the work, by every command that has some."""

import errno
import os

import pytest
from command import one_line

from lambdaresnet_zoo.conversion import convert as conversion
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks import convert, outputs, plan, validate_run
from lambdaresnet_zoo.tasks.benchmark import layer
from lambdaresnet_zoo.tasks.detect import predict as detect_predict
from lambdaresnet_zoo.tasks.detect import run as detect_run
from lambdaresnet_zoo.tasks.label import run as label_run
from lambdaresnet_zoo.tasks.train import run as train_run

TRAIN = ("train", "--model", "test_lambdaresnet", "--data", "folder")
COCO = ("--annotations", "none.json", "--images", "none")
VALIDATE = ("validate", "--model", "test_lambdaresnet")
DETECTOR = ("--checkpoint", "none")
WORK = {
    "results": (validate_run, "load_model", (*VALIDATE, "--results", "file/rows.csv")),
    "per class": (validate_run, "load_model", (*VALIDATE, "--per-class", "folder")),
    "fit": (plan, "_time", ("plan", "--fit", "file/costs.json")),
    "benchmark": (layer, "compare", ("benchmark", "layer", "--quick", "--results", "file/new/rows.csv")),
    "benchmarks": (layer, "compare", ("benchmark", "layer", "growth", "--quick", "--results", "file/new")),
    "detect train": (detect_run, "read_coco", ("detect", "train", *COCO, "--output", "file")),
    "detections": (detect_run, "load_detector", ("detect", "validate", *COCO, *DETECTOR, "--output", "file/found")),
    "detect results": (detect_run, "load_detector", ("detect", "validate", *COCO, *DETECTOR, "--results", "folder")),
    "detect predict": (detect_predict, "load_detector", ("detect", "predict", "a.png", *DETECTOR, "--output", "file")),
    "drawings": (detect_predict, "load_detector", ("detect", "predict", "a.png", *DETECTOR, "--output", "file/new")),
    "report": (convert, "convert", ("convert", "a.pth", "out", "--report", 250 * "x" + ".csv")),
    "folder": (conversion, "find_source", ("convert", "a.pth", "file/new/out")),
    "label": (label_run, "load_model", ("label", "--teacher", "t", "--data", "folder", "--out", "file/new")),
    "train": (train_run, "open_data", (*TRAIN, "--output", "file")),
}


@pytest.mark.parametrize("case", WORK)
def test_an_output_that_cannot_be_written_is_told_before_the_work(command, tmp_path, monkeypatch, case):
    module, name, arguments = WORK[case]

    def works(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(module, name, works)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    outcome = command(*arguments)
    option, path = ("", arguments[-1]) if case == "folder" else arguments[-2:]
    one_line(outcome, option, path, "cannot be written: ")
    assert sorted(os.listdir()) == ["file", "folder"] and not os.listdir("folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_while_detections_are_written_is_one_line(command, tmp_path, monkeypatch, draw):
    import torch

    class Blind(torch.nn.Module):
        def forward(self, images):
            empty = torch.zeros(0)
            return [{"boxes": torch.zeros(0, 4), "labels": empty.long(), "scores": empty}]

    class Config:
        categories = {1: "cat"}  # noqa: RUF012

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(detect_predict, "load_detector", lambda *_: (Blind(), Config()))
    monkeypatch.setattr(detect_predict, "write_whole", full)
    outcome = command("detect", "predict", draw("a.png"), "--checkpoint", "none", "--output", tmp_path / "out")
    one_line(outcome, "--output", "No space left", "; make room")


def test_results_of_something_else_are_told_before_a_detector_is_loaded(command, tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xff\xfe")
    outcome = command("detect", "validate", *COCO, *DETECTOR, "--results", tmp_path / "rows.csv")
    one_line(outcome, "--results", tmp_path / "rows.csv", "cannot be read", "give another")


def test_an_output_that_is_not_asked_for_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs.check_writable("--results", "")
    outputs.check_writable("--output", tmp_path / "new" / "folder", folder=True)
    told = "--output /dev/null cannot be written: Not a directory; give another folder"
    with pytest.raises(UserError, match=f"^{told}$"):
        outputs.check_writable("--output", "/dev/null", folder=True)
    assert not os.listdir()
