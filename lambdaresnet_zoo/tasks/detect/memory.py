"""Peak memory of detectors at the paper's size: a process of its own for each figure, on CPU.

LambdaResNet-101 beside ResNet-RS-101, which is the paper's ResNet-101 with SE (63.6 M parameters as a
classifier): Mask R-CNN, one image of 1024x1024, float32, random weights and targets.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...detection import complexity, mask_rcnn
from ...weights.files import write_rows
from ..validation_report import environment, peak_memory

__all__ = ["RESULTS", "main", "measure"]

RESULTS = Path(__file__).parents[2] / "weights" / "results" / "detection_memory.csv"
BACKBONES = ("lambdaresnet101", "resnetrs101")
MODES = ("forward", "training step")
OBJECTS = 20


def measure(backbone: str, mode: str, size: int = 1024) -> dict[str, Any]:
    """Peak memory of this process in one forward pass, or one training step with SGD and momentum.

    Args:
        backbone: of Mask R-CNN with 91 classes.
        mode: of MODES.
        size: of the image in pixels, square.

    Returns:
        A row: figures in MB (2^20 bytes), the process and its libraries included, and before the pass.
    """
    torch.manual_seed(0)
    model = mask_rcnn(backbone, 91, image_size=size)
    facts = complexity(model, size)
    images = [torch.rand(3, size, size)]
    corners = torch.rand(OBJECTS, 2) * size * 0.6
    boxes = torch.cat([corners, corners + size * (0.05 + 0.3 * torch.rand(OBJECTS, 2))], 1)
    masks = torch.zeros(OBJECTS, size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    targets = [{"boxes": boxes, "labels": torch.randint(1, 91, (OBJECTS,)), "masks": masks}]
    before, _ = peak_memory(torch.device("cpu"))
    objects = OBJECTS
    if mode == "forward":
        model.roi_heads.score_thresh = 0.0  # as many detections, with their masks, as there can be
        with torch.inference_mode():
            objects = len(model.eval()(images)[0]["boxes"])
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        torch.stack(list(model.train()(images, targets).values())).sum().backward()
        optimizer.step()
    peak, _ = peak_memory(torch.device("cpu"))
    return {
        "detector": "mask_rcnn",
        "backbone": backbone,
        "mode": mode,
        "size": size,
        "batch_size": 1,
        "objects": objects,
        "dtype": "float32",
        "params_m": f"{facts.params / 1e6:.2f}",
        "gflops": f"{facts.gflops:.1f}",
        "peak_mb": round(peak),
        "before_mb": round(before),
        **environment(torch.device("cpu"), 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure every backbone and mode, and write the csv; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="pixels of the square image (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="csv to write (%(default)s)")
    parser.add_argument("--one", nargs=2, metavar=("BACKBONE", "MODE"), help="measure in this process, write JSON")
    options = parser.parse_args(arguments)
    if options.one:
        backbone, mode = options.one
        print(json.dumps(measure(backbone, mode, options.size)))
        return 0
    rows = []
    for backbone, mode in tqdm([(backbone, mode) for backbone in BACKBONES for mode in MODES]):
        command = [sys.executable, "-m", "lambdaresnet_zoo.tasks.detect.memory", "--size", str(options.size)]
        found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}  # this package, installed or not
        done = subprocess.run([*command, "--one", backbone, mode], stdout=subprocess.PIPE, text=True, env=found)
        if done.returncode:
            print(f"error: {backbone}, {mode}: exit status {done.returncode}", file=sys.stderr)
            return 1
        rows.append(json.loads(done.stdout))
    write_rows(options.results, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
