"""Detections on images, and their average precision by pycocotools."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ...weights.files import write_whole
from ..outputs import writing
from ..processes import gather
from .data import CocoData
from .samples import Images, collate

__all__ = ["METRICS", "Detection", "coco_results", "detect", "result_files", "score", "write_results"]

Detection = dict[str, Any]
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six figures of COCOeval, in its order, as fractions."""
KINDS = ("bbox", "segm")
"""Of COCO's results: boxes, and masks where there are any."""


@torch.inference_mode()
def detect(
    model: nn.Module,
    data: CocoData,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 4,
    amp_dtype: str = "",
    progress: bool = False,
    process: int = 0,
    processes: int = 1,
) -> list[Detection]:
    """What a detector finds on the images of a data set, in COCO's results format, in order of the images.

    Several processes share the images; each returns all detections.
    """
    model.eval()
    ids = data.ids[process::processes]
    loader: DataLoader[Any] = DataLoader(Images(data, ids), batch_size, num_workers=workers, collate_fn=collate)
    numbers = list(data.categories)
    found: list[Detection] = []
    with tqdm(total=len(ids), desc="detect", disable=not progress, leave=False, dynamic_ncols=True) as bar:
        for image_ids, images in loader:
            half = getattr(torch, amp_dtype) if amp_dtype else torch.float32
            with torch.autocast(device.type, dtype=half, enabled=bool(amp_dtype)):
                outputs = model([image.to(device) for image in images])
            for image_id, output in zip(image_ids, outputs, strict=True):
                found += coco_results(image_id, output, numbers)
            bar.update(len(images))
    position = {image_id: index for index, image_id in enumerate(data.ids)}
    everything = [detection for part in gather(found) for detection in part]
    return sorted(everything, key=lambda detection: position[detection["image_id"]])


def coco_results(image_id: int, output: dict[str, Tensor], numbers: Sequence[int]) -> list[Detection]:
    """One image's detections as COCO has them: bbox [x, y, width, height] in pixels, segmentation as run lengths.

    Args:
        image_id: of the image.
        output: of torchvision's detector: boxes, labels, scores and, if any, masks [N, 1, h, w].
        numbers: ids of the categories in the order of the labels, which begin with 1.
    """
    from pycocotools import mask as run_lengths

    results: list[Detection] = []
    boxes = output["boxes"].float().cpu()
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        detection: Detection = {
            "image_id": image_id,
            "category_id": numbers[int(output["labels"][index]) - 1],
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "score": round(float(output["scores"][index]), 6),
        }
        if "masks" in output:
            mask = (output["masks"][index, 0] > 0.5).cpu().numpy()
            encoded = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
            detection["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
        results.append(detection)
    return results


def split(results: Sequence[Detection], kind: str) -> list[Detection]:
    """The detections as they are scored: with a box, or with a mask alone.

    pycocotools takes the area of a detection from its box where it has one, so COCO's figures of
    masks by size want results without.
    """
    other = {"bbox": "segmentation", "segm": "bbox"}[kind]
    return [{key: value for key, value in detection.items() if key != other} for detection in results]


def score(data: CocoData, results: Sequence[Detection], masks: bool) -> dict[str, float]:
    """COCO's average precision of results: box_ap, box_ap50, ..., and with ``masks`` mask_ap, ...

    -1, as pycocotools has it, where the data have no object of a kind.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    figures: dict[str, float] = {}
    for name, kind in tuple(zip(("box", "mask"), KINDS, strict=True))[: 1 + masks]:
        with contextlib.redirect_stdout(io.StringIO()):
            if results:
                found = data.coco.loadRes(split(results, kind))
            else:  # loadRes looks at the first one
                found = COCO()
                found.dataset = {**data.coco.dataset, "annotations": []}
                found.createIndex()
            evaluation = COCOeval(data.coco, found, kind)
            evaluation.params.imgIds = data.ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures |= {f"{name}_{metric}": float(evaluation.stats[index]) for index, metric in enumerate(METRICS)}
    return figures


def write_results(path: str | Path, results: Sequence[Detection], masks: bool) -> list[Path]:
    """Write COCO results: PATH.bbox.json and, with ``masks``, PATH.segm.json.

    Raises:
        UserError: they cannot be written.
    """
    files = result_files(path, masks)
    for file, kind in zip(files, KINDS, strict=False):
        text = json.dumps(split(results, kind))
        with writing("--output", file):
            write_whole(file, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    return files


def result_files(path: str | Path, masks: bool) -> list[Path]:
    """The files that ``write_results`` writes; none where the path is empty."""
    return [Path(f"{Path(path)}.{kind}.json") for kind in KINDS[: 1 + masks]] if path else []
