"""AP and results are pycocotools' own; what is drawn; what is printed beside the paper's table."""

import json
import math

import numpy as np
import pytest
import torch
from coco_sets import COLORS, TINY_RUN, write_set
from command import one_line
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lambdaresnet_zoo.tasks.detect.data import read_coco
from lambdaresnet_zoo.tasks.detect.predict import draw
from lambdaresnet_zoo.tasks.detect.report import report
from lambdaresnet_zoo.tasks.detect.score import METRICS, coco_results, score, split, write_results
from lambdaresnet_zoo.weights.files import read_rows


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, coco):
    """A tiny detector that has learnt the rectangles a little."""
    from lambdaresnet_zoo.cli import main

    folder = tmp_path_factory.mktemp("run")
    arguments = ["detect", "train", *TINY_RUN, *map(str, coco), "--output", str(folder), "--steps", "60"]
    assert main([*arguments, "--lr", "0.002", "--batch-size", "4"]) == 0
    return folder


def by_pycocotools(annotations, results, kind):
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6]


def test_ap_is_that_of_pycocotools_on_the_written_results(command, coco, learnt, tmp_path):
    results, written = tmp_path / "figures.csv", tmp_path / "found"
    status, out, _ = command(
        "detect", "validate", "--checkpoint", learnt, *coco, "--workers", 0, "--results", results, "--output", written
    )
    assert status == 0
    row = read_rows(results)[0]
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        expected = by_pycocotools(coco[1], f"{written}.{kind}.json", kind)
        assert [row[f"{name}_{metric}"] for metric in METRICS] == [f"{value:.4f}" for value in expected]
    assert float(row["box_ap50"]) > 0.2  # something was learnt, so equality says something
    assert row["images"] == "4" and row["box_ap_large"] == "-1.0000"
    assert "AP50" in out[1] and out[2].startswith("box") and out[3].startswith("mask") and " - " in out[2] + " "
    assert not any("published" in line for line in out)


def test_a_mask_rcnn_is_scored_by_its_boxes_where_the_data_have_no_masks(command, learnt, tmp_path):
    def boxes_alone(content):
        content["annotations"][0] |= {"iscrowd": 1}
        for found in content["annotations"]:
            del found["segmentation"]

    path, folder = write_set(tmp_path, change=boxes_alone)
    results = tmp_path / "figures.csv"
    data = ("--annotations", path, "--images", folder, "--workers", 0, "--results", results)
    status, out, err = command("detect", "validate", "--checkpoint", learnt, *data)
    assert status == 0 and err == [f"{path}: not every annotation has a segmentation: boxes alone are scored"]
    assert not any(line.startswith("mask ") for line in out)
    assert float(read_rows(results)[0]["box_ap50"]) > 0.2 and "mask_ap" not in read_rows(results)[0]
    write_set(tmp_path)
    assert command("detect", "validate", "--checkpoint", learnt, *data)[0] == 0
    without, with_masks = read_rows(results)
    assert without["mask_ap"] == "" and without["box_ap"] and with_masks["mask_ap"]


def test_perfect_masks_score_1(tmp_path):
    path, folder = write_set(tmp_path)
    data = read_coco(path, folder, masks=True)
    results = []
    for image_id in data.ids:
        found = data.coco.imgToAnns[image_id]
        masks = torch.from_numpy(np.stack([data.coco.annToMask(one) for one in found]))[:, None].float()
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([list(data.categories).index(one["category_id"]) + 1 for one in found])
        output = {"boxes": boxes, "labels": labels, "scores": torch.full((len(found),), 0.9), "masks": masks}
        results += coco_results(image_id, output, list(data.categories))
    figures = score(data, results, masks=True)
    assert {figures["box_ap"], figures["mask_ap"], figures["mask_ap75"], figures["mask_ap_medium"]} == {1.0}
    assert figures["mask_ap_small"] == -1
    assert score(data, [], masks=True)["mask_ap"] == 0
    assert [path.name for path in write_results(tmp_path / "r", results, True)] == ["r.bbox.json", "r.segm.json"]
    assert "bbox" not in split(results, "segm")[0] and "segmentation" not in split(results, "bbox")[0]


def test_crowds_are_ignored_in_scores(tmp_path):
    """A detection on a crowd region is neither right nor wrong."""

    def crowd(content):
        content["annotations"][0]["iscrowd"] = 1

    path, folder = write_set(tmp_path, 1, crowd)
    data = read_coco(path, folder, masks=True)
    crowded, alone = data.coco.dataset["annotations"]
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": confidence}
        for one, confidence in ((crowded, 0.99), (alone, 0.5))
    ]
    assert score(data, results, masks=False)["box_ap"] == pytest.approx(1)


def test_categories_that_the_detector_does_not_know_are_refused(command, learnt, tmp_path):
    def renamed(content):
        content["categories"][0] = {"id": 7, "name": "green"}

    path, folder = write_set(tmp_path, 1, renamed)
    arguments = ("detect", "validate", "--checkpoint", learnt, "--annotations", path, "--images", folder)
    one_line(command(*arguments), "category 7 is 'green', and to the detector it is 'red'")


def test_the_papers_table_beside_coco():
    row = {f"{kind}_{metric}": 0.5 for kind in ("box", "mask") for metric in METRICS}
    text = report(row, "mask_rcnn on lambdaresnet101", 5000, "lambdaresnet101")
    lines = [line.split() for line in text.splitlines()]
    assert ["lambdaresnet101", "*", "box", "49.4", "-", "-", "31.7", "52.2", "65.6"] in lines
    assert ["resnet152_se", "mask", "43.5", "-", "-", "24.6", "46.8", "61.8"] in lines
    assert ["box", *["50.0"] * 6] in lines


def test_predictions_are_drawn_and_written(command, coco, learnt, tmp_path):
    images, output = coco[3], tmp_path / "drawn"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    status, out, err = command(
        "detect", "predict", images, bad, "--checkpoint", learnt, "--output", output, "--threshold", 0.3
    )
    assert status == 1 and err == [
        f"error: {bad}: not an image in a format that Pillow reads; convert it to JPEG or PNG"
    ]
    found = json.loads((output / "detections.json").read_text())
    names = {one["file_name"] for one in found}
    assert names <= {str(images / f"{number}.png") for number in range(4)} and found
    for one in found:
        assert one["category_id"] in COLORS and 0 <= one["score"] <= 1 and len(one["bbox"]) == 4
        assert run_lengths.decode(one["segmentation"]).shape == (96, 128)
    confident = sum(one["score"] >= 0.3 for one in found)
    assert confident and sum(int(line.split(": ")[1].split()[0]) for line in out) == confident
    original, drawn = (np.asarray(Image.open(folder / "0.png")) for folder in (images, output))
    assert drawn.shape == original.shape
    assert not np.array_equal(drawn, original) and (drawn == original).mean() > 0.2

    blank = tmp_path / "blank"
    arguments = ("--checkpoint", learnt, "--output", blank, "--threshold", 0.3, "--blank")
    assert command("detect", "predict", images / "0.png", *arguments)[0] == 0
    assert (np.asarray(Image.open(blank / "0.png")) == 245).all(2).mean() > 0.2


def test_boxes_masks_and_names_are_where_they_belong():
    masks = torch.zeros(2, 1, 100, 200)
    masks[0, 0, 20:60, 30:90] = 0.9
    output = {
        "boxes": torch.tensor([[30.0, 20, 90, 60], [100.0, 20, 190, 90]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.2]),
        "masks": masks,
    }
    canvas = Image.new("RGB", (200, 100), (255,) * 3)
    drawn = np.asarray(draw(canvas, output, ["cat", "dog"], 0.5))
    assert (drawn[:, 100:] == 255).all()  # what scores less is not drawn
    assert (drawn[40:55, 40:85] != 255).any(2).all()  # the mask
    assert math.isclose((drawn[:18] == 255).mean(), 1) and (drawn[60, 30:90] != 255).any(1).all()  # the box
    assert draw(canvas, output, ["cat", "dog"], 0.95).tobytes() == canvas.tobytes()


def test_no_detector_is_one_line(command, coco, tmp_path):
    one_line(command("detect", "validate", "--checkpoint", tmp_path, *coco), "holds no detector.json")
    (tmp_path / "detector.json").write_text("{}")
    one_line(command("detect", "validate", "--checkpoint", tmp_path, *coco), "detector.json is damaged")
    one_line(command("detect", "predict", "x.png", "--checkpoint", tmp_path, "--output", tmp_path), "is damaged")


@pytest.mark.slow
def test_coco_mini_from_end_to_end(command, shared_data, tmp_path):
    """80 categories with ids up to 90, run lengths, crowds: a few steps, then AP of the validation images."""
    root = shared_data("coco-mini")
    train = ("--annotations", root / "annotations/instances_train2017.json", "--images", root / "train2017")
    status, out, err = command("detect", "train", *TINY_RUN, *train, "--output", tmp_path, "--steps", 4)
    assert status == 0 and err == [] and "80 categories" in out[1]
    validation = ("--annotations", root / "annotations/instances_val2017.json", "--images", root / "val2017")
    results = tmp_path / "figures.csv"
    status, out, err = command(
        "detect", "validate", "--checkpoint", tmp_path, *validation, "--limit", 10, "--workers", 0, "--results", results
    )
    assert status == 0 and err == []
    assert read_rows(results)[0]["images"] == "10" and 0 <= float(read_rows(results)[0]["mask_ap"]) <= 1
