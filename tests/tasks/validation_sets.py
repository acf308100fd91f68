"""The same labelled pictures as a folder, a tar, tars, parquet and webdataset, and a loop to compare with."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy

from lambdaresnet_zoo.weights.files import read_rows

MODEL = "test_lambdaresnet"
BASE = ("--workers", 0, "--device", "cpu")
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
COUNT = 23  # divides by no batch and no number of processes used here


def pictures(count=COUNT):
    """Pairs of class and JPEG file."""
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((130, 110), Image.Resampling.BICUBIC).save(stream, "JPEG")
        yield number * number % 7 if number > 6 else number, stream.getvalue()


def photographs(count=COUNT):
    """The pictures twice, without loss: as a viewer shows them, and stored turned, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    shown, stored = [], []
    for label, content in pictures(count):
        image = Image.open(io.BytesIO(content))
        for rows, picture, more in (
            (shown, image, {}),
            (stored, image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
        ):
            stream = io.BytesIO()
            picture.save(stream, "PNG", **more)
            rows.append((label, stream.getvalue()))
    return shown, stored


def write_folder(root, rows):
    for number, (label, content) in enumerate(rows):
        path = root / NAMES[label] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(root, rows, shards=3, info=True):
    rows, names, lengths = list(rows), [], []
    for shard in range(shards):
        part = list(enumerate(rows))[shard::shards]
        names.append(f"test-{shard}.tar")
        lengths.append(len(part))
        members = [(f"{n:03d}.{end}", data) for n, (y, x) in part for end, data in (("jpg", x), ("cls", b"%d" % y))]
        write_tar(root / names[-1], members)
    if info:
        split = {"name": "test", "num_samples": len(rows), "filenames": names, "shard_lengths": lengths}
        (root / "_info.json").write_text(json.dumps({"splits": {"test": split}}))
    return root


def write_parquet(root, rows, names=NAMES):
    root.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": x, "path": f"{n:03d}.jpg"}, "label": y} for n, (y, x) in enumerate(rows)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(meta)
    pyarrow.parquet.write_table(table, root / "test.parquet")
    return root


def write(kind, root, rows=None):
    """Write pictures in a form; returns what --data is told."""
    rows = list(rows or pictures())
    if kind == "folder":
        return write_folder(root / "folder", rows)
    if kind == "tar":
        return write_tar(root / "all.tar", [(f"{NAMES[y]}/{n:03d}.jpg", x) for n, (y, x) in enumerate(rows)])
    if kind == "tars":
        for label, name in enumerate(NAMES):
            write_tar(root / "tars" / f"{name}.tar", [(f"{n}.jpg", x) for n, (y, x) in enumerate(rows) if y == label])
        return root / "tars"
    if kind == "parquet":
        return write_parquet(root / "parquet", rows)
    if kind == "shard":
        return write_shards(root / "shard", rows, 1, info=False) / "test-0.tar"
    return write_shards(root / kind, rows, info=kind == "webdataset")


def timm_figures(name, checkpoint, folder, batch_size, amp=None, channels_last=False, **config):
    """Count of correct images, top-5 and loss, computed as timm's validate.py does."""
    model = timm.create_model(name, num_classes=len(NAMES), checkpoint_path=str(checkpoint)).eval()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    config = resolve_data_config(config, model=model, use_test_size=True)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    loader = create_loader(
        create_dataset("", root=str(folder), split="validation"),
        batch_size=batch_size,
        num_workers=0,
        device=torch.device("cpu"),
        **{key: config[key] for key in keys},
    )
    meters = [AverageMeter() for _ in range(3)]
    with torch.inference_mode():
        for images, target in loader:
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
                output = model(images)
                loss = torch.nn.CrossEntropyLoss()(output, target)
            for meter, value in zip(meters, (*accuracy(output, target, (1, 5)), loss), strict=True):
                meter.update(value.item(), len(target))
    top1, top5, loss = (meter.avg for meter in meters)
    return round(top1 * meters[0].count / 100), round(top5 * meters[0].count / 100), loss


def row_of(path):
    """The last row of a csv."""
    return read_rows(path)[-1]


def counts(row):
    return round(float(row["top1"]) * int(row["count"]) / 100), round(float(row["top5"]) * int(row["count"]) / 100)
