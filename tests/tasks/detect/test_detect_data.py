"""COCO-format data: what is read, what is refused before training starts, what is augmented."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from coco_sets import TINY_RUN, rectangle, write_set
from command import one_line
from PIL import Image
from pycocotools.coco import COCO

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.detect.data import check_images, read_coco
from lambdaresnet_zoo.tasks.detect.recipe import RECIPES, Recipe
from lambdaresnet_zoo.tasks.detect.samples import Samples
from lambdaresnet_zoo.tasks.sampling import Numbers

STILL = Recipe(image_size=128, scale=(1.0, 1.0), crop=False, hflip=0.0)


def test_targets_are_those_of_pycocotools(tmp_path):
    path, folder = write_set(tmp_path)
    theirs = COCO(str(path))
    data = read_coco(path, folder, masks=True)
    samples = Samples(data, data.ids, STILL, 0, masks=True)
    assert data.categories == {3: "blue", 7: "red"}
    for number in range(len(data.ids)):
        image, target = samples[number]
        assert image.shape == (3, 96, 128) and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1
        found = theirs.imgToAnns[samples.image_id(number)]
        assert len(found) == 2
        assert target["labels"].tolist() == [{3: 1, 7: 2}[one["category_id"]] for one in found]
        masks = np.stack([theirs.annToMask(one) for one in found])  # polygons and both kinds of run lengths
        assert np.array_equal(target["masks"].numpy(), masks)
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(target["boxes"], boxes)
    assert sorted(samples.image_id(number) for number in range(4)) == data.ids
    assert sorted(samples.image_id(number) for number in range(4, 8)) == data.ids


def test_augmentation_keeps_boxes_on_what_they_are_of(tmp_path):
    path, folder = write_set(tmp_path)
    data = read_coco(path, folder, masks=True)
    recipe = dataclasses.replace(RECIPES["paper"], image_size=128)
    samples = Samples(data, data.ids, recipe, 0, masks=True)
    seen = sizes = 0
    for number in range(60):
        image, target = samples[number]
        assert image.shape == (3, 128, 128)
        for box, label, mask in zip(
            target["boxes"].round().int().tolist(), target["labels"], target["masks"], strict=True
        ):
            left, top, right, bottom = box
            inside = image[:, top:bottom, left:right]
            if inside.shape[1] < 8 or inside.shape[2] < 8:
                continue
            red, _, blue = inside[:, 3:-3, 3:-3].mean((1, 2))
            assert (blue > red) == (int(label) == 1), (number, box)
            assert mask[top:bottom, left:right].float().mean() > 0.8
            assert mask.sum() <= 1.1 * inside[0].numel() + 60
            seen += 1
            sizes += right - left > 45
    assert seen > 40 and sizes > 5  # scales above 1 too
    again = samples[3]
    first = samples[3]
    assert torch.equal(again[0], first[0]) and torch.equal(again[1]["boxes"], first[1]["boxes"])


def test_processes_share_each_step():
    whole = list(Numbers(2, 4, 6, 0, 1))
    assert whole == list(range(12, 24))
    parts = [list(Numbers(2, 4, 6, process, 2)) for process in (0, 1)]
    assert parts == [[12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]


def crowd_and_empty(content):
    content["annotations"][0] |= {"iscrowd": 1}
    content["annotations"] = content["annotations"][:4]  # two images have none


def test_crowds_and_images_without_objects(tmp_path):
    path, folder = write_set(tmp_path, change=crowd_and_empty)
    data = read_coco(path, folder, masks=True)
    assert [len(data.objects(number)) for number in data.ids] == [1, 2, 0, 0]
    _, target = Samples(data, data.ids[2:], STILL, 0, masks=True)[0]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 96, 128) and target["labels"].shape == (0,)


def test_a_crowd_needs_a_segmentation_where_it_is_scored_alone(tmp_path):
    def crowd(content):
        content["annotations"][0] |= {"iscrowd": 1}
        del content["annotations"][0]["segmentation"]
        content["annotations"][1] |= {"iscrowd": 1, "segmentation": []}
        content["annotations"][2] |= {"iscrowd": 1, "segmentation": {"size": [96, 128], "counts": "garbage!!"}}

    path, folder = write_set(tmp_path, change=crowd)
    assert read_coco(path, folder, masks=True).masks
    with pytest.raises(UserError, match=r"annotation 1 of image 5 \(0.png\): no segmentation.*2 more like it"):
        read_coco(path, folder, masks=True, scored=True)
    assert not read_coco(path, folder, masks=None, scored=True).masks


def test_what_tables_leave_empty_or_write_as_fractions_is_read(tmp_path):
    def table(content):
        content["images"][0] |= {"width": 128.0, "height": 96.0}
        content["annotations"][0] |= {"iscrowd": None, "area": None, "image_id": 5.0}

    path, folder = write_set(tmp_path, change=table)
    data = read_coco(path, folder, masks=True)
    found = data.coco.anns[1]
    assert found["iscrowd"] == 0 and found["area"] == 36 * 40
    assert data.coco.annToMask(found).shape == (96, 128)


def annotation(**changes):
    return lambda content: content["annotations"][1].update(changes)


def named(name):
    return lambda content: content["images"][1].update(file_name=name)


def narrower(content):
    content["images"][1]["width"] = 64
    del content["annotations"][3]  # run lengths of the true width


PROBLEMS = {
    "zero width": (annotation(bbox=[5, 5, 0, 9]), "annotation 2 of image 5 (0.png): the box has width 0 and height 9"),
    "negative": (annotation(bbox=[5, 5, 8, -9]), "annotation 2 of image 5 (0.png): the box has width 8 and height -9"),
    "no box": (annotation(bbox=[5, 5, None, 9]), "annotation 2 of image 5 (0.png): bbox [5, 5, None, 9] is not"),
    "category": (annotation(category_id=4), "annotation 2 of image 5 (0.png): category_id 4 is not among"),
    "image": (annotation(image_id=6), "annotation 2 of image 6: there is no such image"),
    "no mask": (annotation(segmentation=[]), "annotation 2 of image 5 (0.png): no segmentation"),
    "polygon": (annotation(segmentation=[[1, 2, 3, 4]]), "annotation 2 of image 5 (0.png): a polygon is not"),
    "mask size": (
        annotation(segmentation={"size": [9, 9], "counts": [81]}),
        "annotation 2 of image 5 (0.png): the run lengths are of [9, 9]",
    ),
    "counts": (
        annotation(segmentation={"size": [96, 128], "counts": [5, 6]}),
        "annotation 2 of image 5 (0.png): the run lengths do not add up",
    ),
    "text that is no mask": (
        annotation(segmentation={"size": [96, 128], "counts": "garbage!!"}),
        "annotation 2 of image 5 (0.png): the run lengths do not add up",
    ),
    "text of a smaller mask": (
        annotation(segmentation={"size": [96, 128], "counts": "1" * 200}),
        "annotation 2 of image 5 (0.png): the run lengths do not add up",
    ),
    "category of a list": (annotation(category_id=[1]), "annotation 2 of image 5 (0.png): category_id [1] is no"),
    "image of a mapping": (annotation(image_id={}), "annotation 2 of image {}: image_id {} is no number"),
    "area": (annotation(area="big"), "annotation 2 of image 5 (0.png): area 'big' is no number"),
    "missing file": (
        lambda content: content["images"][1].update(file_name="no.png"),
        "image 15 (no.png): no such file",
    ),
    "size": (narrower, "image 15 (1.png): has 128x96 pixels, and"),
    "no file": (named("bad.png"), "image 15 (bad.png): "),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_wrong_is_one_line_before_training(command, tmp_path, problem):
    change, message = PROBLEMS[problem]
    path, folder = write_set(tmp_path, change=change)
    (folder / "bad.png").write_bytes((folder / "1.png").read_bytes()[:900])  # cut short
    arguments = ("--annotations", path, "--images", folder, "--output", tmp_path / "run", "--steps", 1)
    one_line(command("detect", "train", *TINY_RUN, *arguments), path, message, "--skip-bad")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("problem", ["negative", "category", "missing file", "size"])
def test_skip_bad_leaves_it_out_and_says_so(tmp_path, capsys, problem):
    change, message = PROBLEMS[problem]
    path, folder = write_set(tmp_path, change=change)
    data = read_coco(path, folder, masks=True, skip_bad=True)
    good = check_images(data, data.ids, skip_bad=True, progress=False)
    assert capsys.readouterr().err.startswith(f"left out: {path}: {message}")
    assert sum(len(data.objects(number)) for number in good) == (7 if "annotation" in message else 6)


STRUCTURE = {
    "not json": ("{", "cannot be read as JSON"),
    "no lists": ("[]", "is not in COCO's format"),
    "no id": ({"images": [{}], "categories": [], "annotations": []}, "image at position 0 has no whole number"),
    "twice": ({"images": [], "categories": [{"id": 1, "name": "a"}] * 2, "annotations": []}, "two category entries"),
    "no name": ({"images": [], "categories": [{"id": 1}], "annotations": []}, "category 1 has no 'name'"),
    "name of a number": (
        {"images": [{"id": 1, "file_name": 5, "width": 1, "height": 1}], "categories": [], "annotations": []},
        "image 1 has the file_name 5, which is no text",
    ),
    "width of text": (
        {"images": [{"id": 1, "file_name": "a", "width": "1", "height": 1}], "categories": [], "annotations": []},
        "image 1 has the width '1', which is no whole number",
    ),
    "nothing": ({"images": [], "categories": [], "annotations": []}, "0 images and 0 categories"),
}


@pytest.mark.parametrize("problem", STRUCTURE)
def test_a_file_of_another_format_is_refused(tmp_path, problem):
    content, message = STRUCTURE[problem]
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_coco(path, tmp_path, masks=True)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder of images"):
        read_coco(tmp_path / "a.json", tmp_path / "none", masks=True)
    with pytest.raises(UserError, match="no such annotation file"):
        read_coco(tmp_path / "a.json", tmp_path, masks=True)


def test_an_image_is_turned_where_its_annotations_are_of_the_turned_one(tmp_path):
    def portrait(content):
        content["images"][0] |= {"width": 96, "height": 128}

    path, folder = write_set(tmp_path, 2, portrait)
    for name in ("0.png", "1.png"):  # both say that they are to be turned
        image = Image.open(folder / name)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / name, exif=exif)
    data = read_coco(path, folder, masks=False)
    assert [data.open(number).size for number in data.ids] == [(96, 128), (128, 96)]


def test_annotation_number_0_is_scored(tmp_path):
    from lambdaresnet_zoo.tasks.detect.score import score

    def from_zero(content):
        for number, found in enumerate(content["annotations"]):
            found["id"] = number

    path, folder = write_set(tmp_path, 2, from_zero)
    data = read_coco(path, folder, masks=False)
    perfect = [
        {**{key: found[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for found in data.coco.dataset["annotations"]
    ]
    assert score(data, perfect, masks=False)["box_ap"] == pytest.approx(1)


def test_faster_rcnn_needs_no_segmentation(tmp_path):
    path, folder = write_set(tmp_path, change=PROBLEMS["no mask"][0])
    assert len(read_coco(path, folder, masks=False).coco.anns) == 8
    assert rectangle(1, 1, 1, (0, 0, 2, 2))["iscrowd"] == 0
