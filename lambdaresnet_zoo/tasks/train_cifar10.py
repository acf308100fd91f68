"""Train the network for 32x32 images, and its convolutional twin, on CIFAR-10.

One recipe for every machine: only the number of epochs differs between a few CPU cores and a GPU.
SGD with Nesterov momentum, cosine schedule after a warm-up, label smoothing, random crop and flip,
weight averaging; what is evaluated and saved is the average after the last epoch. Nothing is
selected on the test split.

A run can be interrupted at any moment and continues from its last finished epoch; what it draws at
random depends on the seed and the epoch alone, so it ends as an uninterrupted one would.
"""

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from ..errors import UserError, first_line
from ..weights.files import read_rows, write_rows, write_whole
from ..weights.folder import save_weights
from .checkpoints import LAST, check_run, read_state, write_state
from .cifar10 import Split, accuracy, augment, normalize, read_split

__all__ = ["add_arguments", "main", "train"]

LEARNING_RATE = 0.1
BATCH_SIZE = 128
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
EMA_DECAY = 0.998
WARMUP_FRACTION = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the script."""
    parser.add_argument("--model", default="lambdaresnet32px", help="a network for 32x32 images")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet")
    parser.add_argument("--lossless", type=Path, help="folder with the lossless test subset, to report it too")
    parser.add_argument("--output", type=Path, required=True, help="folder for the run; continues what it holds")
    parser.add_argument("--epochs", type=int, default=200, help="the schedule ends here (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        train_split = read_split(options.data, "train")
        tests = {"top1": read_split(options.data, "test")}
        if options.lossless:
            tests["top1_lossless"] = read_split(options.lossless, "test")
        device = torch.device(options.device)
        row = train(options.model, train_split, tests, options.output, options.epochs, options.seed, device)
    except (OSError, ImportError, ValueError, RuntimeError, UserError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}; {options.output / LAST} is the last good epoch", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command to continue from the last finished epoch", file=sys.stderr)
        return 130
    print(", ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def train(
    name: str, split: Split, tests: dict[str, Split], output: Path, epochs: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train one network; write checkpoint, log, weights and result into ``output``.

    Args:
        name: of a registered model.
        split: to train on.
        tests: by the name of the column that their top-1 goes to.
        output: folder of the run; a run found there is continued.
        epochs: of the schedule.
        seed: of initialisation, order and augmentation.
        device: to train on; CUDA uses mixed precision.

    Returns:
        The row of the result: model, parameters, epochs, seed, top-1 figures, seconds, environment.

    Raises:
        ValueError: no epoch or not one whole batch to train on.
        UserError: ``output`` holds another run, or a damaged one.
        FloatingPointError: the loss is NaN.
    """
    if epochs < 1 or len(split.labels) < BATCH_SIZE:
        raise ValueError(f"{epochs} epochs of {len(split.labels)} images: at least 1 epoch of {BATCH_SIZE} are needed")
    torch.manual_seed(seed)
    model = timm.create_model(name).to(device, memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=EMA_DECAY, use_warmup=True)
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=0.9
    )  # timm's sgd is Nesterov's
    steps = len(split.labels) // BATCH_SIZE
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps,
        warmup_t=max(1, int(WARMUP_FRACTION * epochs * steps)),
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    half = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and half is torch.float16)

    run = {"model_name": name, "epochs": epochs, "seed": seed}
    checkpoint = output / LAST
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = read_state(checkpoint, device)
        check_run(checkpoint, state, run)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        first, seconds = state["epoch"], state["seconds"]

    split = split.to(device)
    for epoch in range(first, epochs):
        start = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + epoch + 1)
        loss = _epoch(
            model, ema, optimizer, schedule, scaler, half, split, epoch * steps, f"epoch {epoch + 1}/{epochs}"
        )
        seconds += time.perf_counter() - start
        state = {
            **run,
            "epoch": epoch + 1,
            "seconds": seconds,
            "model": model.state_dict(),
            "ema": ema.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        write_state(checkpoint, state)
        _log(output / "log.csv", {"epoch": epoch + 1, "loss": round(loss, 4), "seconds": round(seconds, 1)})

    network = ema.module
    write_whole(output / "model.safetensors", lambda path: save_weights(path, network, torch.float32))
    row = {
        "model": name,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": epochs,
        "seed": seed,
        **{column: f"{accuracy(network, test.to(device)):.2f}" for column, test in tests.items()},
        "train_seconds": round(seconds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    write_rows(output / "result.csv", [row])
    return row


def _epoch(
    model: nn.Module,
    ema: ModelEmaV3,
    optimizer: torch.optim.Optimizer,
    schedule: CosineLRScheduler,
    scaler: torch.amp.GradScaler,
    half: torch.dtype,
    split: Split,
    step: int,
    title: str,
) -> float:
    """One pass over a split, from global step ``step``; returns the mean loss."""
    cfg: Any = model.pretrained_cfg
    device = split.images.device
    model.train()
    order = torch.randperm(len(split.labels), device=device)
    batches = order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)
    total = torch.zeros((), device=device)
    bar = tqdm(batches, desc=title, mininterval=5, dynamic_ncols=True)
    for number, batch in enumerate(bar, start=1):
        schedule.step_update(step + number)
        images = normalize(augment(split.images[batch]), cfg["mean"], cfg["std"])
        with torch.autocast(device.type, dtype=half, enabled=device.type == "cuda"):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), split.labels[batch], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        ema.update(model, step=step + number)
        total += loss.detach()
        if number % 50 == 0:
            mean = float(total) / number
            if mean != mean:
                raise FloatingPointError(f"the loss is NaN in {title}, step {number}")
            bar.set_postfix(loss=f"{mean:.3f}")
    return float(total) / len(batches)


def _log(path: Path, row: dict[str, Any]) -> None:
    """Append a row to the log; an epoch that is run again replaces what followed."""
    old = read_rows(path) if path.exists() else []
    write_rows(path, [*(before for before in old if int(before["epoch"]) < row["epoch"]), row])
