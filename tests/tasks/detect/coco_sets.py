"""Small COCO-format data: rectangles on a grey ground, categories whose ids have gaps."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

# A narrow pyramid and few regions, which would take most of the time.
TINY = str(Path(__file__).with_name("tiny.json"))
TINY_RUN = ("--backbone", "test_lambdaresnet", "--recipe", TINY, "--workers", "0")

CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
COLORS = {7: (200, 40, 40), 3: (40, 40, 200)}


def rectangle(number, image_id, category, box, form="polygon", size=(96, 128), **more):
    """An annotation of a rectangle; ``form`` of its segmentation: polygon, rle (compressed), counts."""
    left, top, width, height = box
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    segmentation = [corners]
    if form == "rle":
        encoded = run_lengths.encode(mask)
        segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    if form == "counts":
        flat = mask.flatten(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
        segmentation = {"size": list(size), "counts": np.diff(np.concatenate([[0], changes])).tolist()}
    found = {"id": number, "image_id": image_id, "category_id": category, "bbox": list(box), "area": width * height}
    return {**found, "iscrowd": 0, "segmentation": segmentation, **more}


def write_set(folder, images=4, change=None):
    """Write images and annotations; ``change`` may alter the content before. Returns the two paths."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    content = {"images": [], "categories": list(CATEGORIES), "annotations": []}
    generator = np.random.default_rng(0)
    for index in range(images):
        image_id = 10 * index + 5
        pixels = generator.integers(100, 130, (96, 128, 3)).astype(np.uint8)
        for place, category in enumerate((7, 3)):
            left, top = 8 + 60 * place + 2 * index, 10 + 6 * index + 5 * place
            forms = ("polygon", "rle", "counts")
            box = (left, top, 36, 40)
            pixels[top : top + 40, left : left + 36] = COLORS[category]
            number = len(content["annotations"]) + 1
            content["annotations"].append(rectangle(number, image_id, category, box, forms[number % 3]))
        name = f"{index}.png"
        Image.fromarray(pixels).save(pictures / name)
        content["images"].append({"id": image_id, "file_name": name, "width": 128, "height": 96})
    if change:
        change(content)
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path, pictures
