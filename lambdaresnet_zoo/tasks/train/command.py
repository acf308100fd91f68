"""The options of `lambdaresnet-zoo train` on the command line, without torch.

None has a default here: what is not given comes from the recipe, and then from ``TrainOptions``.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from ...arguments import Adder, count, keyword, natural, number, share
from ...errors import UserError
from .options import ARGS, TrainOptions, resolve

__all__ = ["add_arguments", "run"]

DEFAULTS = TrainOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options, in groups."""
    for title, add in (
        ("run", _add_run),
        ("data", _add_data),
        ("model", _add_model),
        ("optimiser", _add_optimiser),
        ("learning rate", _add_schedule),
        ("augmentation and loss", _add_augmentation),
        ("machine", _add_machine),
    ):
        add(Adder(parser.add_argument_group(title), DEFAULTS))


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    names = {entry.name for entry in fields(TrainOptions)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if isinstance(given.get("model_kwargs"), list):
        given["model_kwargs"] = dict(given["model_kwargs"])
    goes_on = given.get("resume") == "" and given.get("output")
    if not given.get("model") and not goes_on:
        options.parser.error("give --model NAME, or --resume to continue the run in --output FOLDER")
    if not given.get("model") and not Path(given["output"], ARGS).is_file():
        raise UserError(f"--output {given['output']} holds no run to continue; check the name, or begin with --model")
    given.setdefault("output", f"runs/{given.get('model', '').rsplit('/', 1)[-1].replace(':', '-')}")
    from .run import train

    return train(resolve(given, getattr(options, "assignments", [])))


def _add_run(add: Adder) -> None:
    add("--model", "-m", metavar="NAME", help="this package's or timm's, local-dir:PATH or hf-hub:ID")
    add("--output", metavar="FOLDER", help="of the run, on a disk that all processes see (runs/MODEL)")
    add("--resume", nargs="?", const="", metavar="FILE", help="continue from a checkpoint (the run in --output)")
    add("--recipe", metavar="NAME", help="paper-90ep, paper-350ep, cifar10, finetune or a .yaml file; '' for none")
    add("--set", dest="assignments", action="append", metavar="KEY=VALUE", help="change the recipe; repeatable")
    add("--dry-run", action="store_true", help="print model, data, options and steps, and end")
    add("--epochs", type=count, metavar="N", help="passes over the data")
    add("--seed", type=natural, metavar="N", help="of initialisation, order and augmentation")
    add.flag("--deterministic", help="the same weights to the bit from the same command; slower on a GPU")
    add("--checkpoint-steps", "--recovery-interval", dest="checkpoint_steps", type=natural, metavar="N",
        help="updates between checkpoints within an epoch; 0 for none but at its end")  # fmt: skip
    add("--val-interval", type=count, metavar="N", help="epochs between evaluations")
    add("--eval-metric", choices=["top1", "top5", "loss"], help="by which the best weights are kept")
    add(
        "--log-interval",
        type=count,
        metavar="N",
        help="updates between rows of steps.csv, where an epoch's end has one too",
    )
    add.flag("--tensorboard", help="write curves for TensorBoard too")
    add.flag("--progress", help="a progress bar (if stderr is a terminal)")


def _add_data(add: Adder) -> None:
    add("--data", "--data-dir", dest="data", metavar="PATH", help="ImageFolder, tar, folder of parquet or webdataset")
    add("--dataset", metavar="NAME", help="timm's name of the data: hfds/..., wds/, torch/...")
    add("--train-split", metavar="NAME", help="to train on (train, or all)")
    add("--val-split", metavar="NAME", help="to evaluate on (validation, or else test)")
    add("--val-data", metavar="PATH", help="where the images to evaluate on are (--data)")
    add("--val-fraction", type=share, metavar="X",
        help="of each class held out to evaluate on; 0 for none (0.1 where there is no such split)")  # fmt: skip
    add("--class-map", metavar="FILE", help="names of the classes in their order, a line each")
    add("--input-key", metavar="KEY", help="where the data has its images")
    add("--target-key", metavar="KEY", help="where the data has its classes")
    add("--num-classes", type=count, metavar="N", help="classes (those of the data)")
    add("--train-num-samples", type=count, metavar="N", help="images in a stream whose length is not known")
    add("--val-num-samples", type=count, metavar="N", help="the same for evaluation")
    add("--pseudo-labels", metavar="FOLDER", help="what the command label wrote, to train on too")
    add("--pseudo-data", metavar="PATH", help="where the images of these labels are (where they were)")
    add("--pseudo-ratio", type=number, metavar="X", help="pseudo-labelled images for each labelled one")
    add.flag("--skip-bad", help="replace images that cannot be decoded by others, and count them")
    add.flag("--check-images", help="decode every image before training (if they are a few thousand)")


def _add_model(add: Adder) -> None:
    add("--model-kwargs", type=keyword, nargs="+", metavar="KEY=VALUE", help="options of the network")
    add.flag("--pretrained", help="fine-tune the model's weights; the recipe is finetune unless another is given")
    add("--initial-checkpoint", metavar="FILE", help="fine-tune these weights, in any format that convert knows")
    add("--freeze", nargs="+", metavar="STAGE", help="stages not to train: stem c2 c3 c4 c5")
    add("--freeze-epochs", type=natural, metavar="N", help="epochs in which the classifier alone is trained")
    add.flag("--freeze-bn", help="keep batch norm's statistics, scales and shifts")
    add("--gp", metavar="NAME", help="global pool: avg, max, avgmax, catavgmax, fast (the model's)")
    add("--img-size", type=count, metavar="N", help="pixels of the input (the model's)")
    add("--crop-pct", type=number, metavar="X", help="centre crop in evaluation (the model's)")
    add("--crop-mode", choices=["center", "squash", "border"], help="in evaluation (the model's)")
    add("--interpolation", metavar="NAME", help="in evaluation (the model's)")
    add("--mean", type=float, nargs=3, metavar="X", help="of the channels (the model's)")
    add("--std", type=number, nargs=3, metavar="X", help="of the channels (the model's)")
    add("--drop", type=share, metavar="X", help="dropout before the classifier")
    add("--drop-path", type=share, metavar="X", help="stochastic depth, in the last block (the model's)")
    add("--drop-block", type=share, metavar="X", help="DropBlock, in networks that have it")


def _add_optimiser(add: Adder) -> None:
    add("--batch-size", "-b", type=count, metavar="N", help="images of a pass in each process")
    add("--validation-batch-size", "-vb", type=count, metavar="N", help="in evaluation (--batch-size)")
    add("--grad-accum-steps", type=count, metavar="N", help="passes whose gradients make an update")
    add("--opt", metavar="NAME", help="timm's name")
    add("--opt-eps", type=number, metavar="X", help="(the optimiser's)")
    add("--opt-betas", type=number, nargs="+", metavar="X", help="(the optimiser's)")
    add("--momentum", type=number, metavar="X", help="where the optimiser has one")
    add("--weight-decay", type=number, metavar="X", help="not of biases and norms")
    add("--clip-grad", type=number, metavar="X", help="clip the gradient to this (not)")
    add("--clip-mode", choices=["norm", "value", "agc"], help="how")
    add("--layer-decay", type=number, metavar="X", help="the rate of a block, in proportion to the next one's (1)")


def _add_schedule(add: Adder) -> None:
    add("--sched", metavar="NAME", help="cosine, tanh, step, multistep, plateau, poly, wsd, rsqrt, constant, none")
    add.flag("--sched-on-updates", help="change the rate with each update, not each epoch (yes)")
    add("--lr", type=number, metavar="X", help="learning rate (from --lr-base)")
    add("--lr-base", type=number, metavar="X", help="learning rate at --lr-base-size")
    add("--lr-base-size", type=count, metavar="N", help="images of an update to which --lr-base belongs")
    add("--lr-base-scale", choices=["linear", "sqrt"], help="how it follows the batch (sqrt for ada... and lamb)")
    add("--lr-noise", type=float, nargs="+", metavar="X", help="from and to which part of the epochs")
    add("--lr-noise-pct", type=float, metavar="X", help="limit of the noise")
    add("--lr-noise-std", type=float, metavar="X", help="of the noise")
    add("--lr-cycle-mul", type=float, metavar="X", help="length of a cycle against the one before")
    add("--lr-cycle-decay", type=float, metavar="X", help="rate of a cycle against the one before")
    add("--lr-cycle-limit", type=count, metavar="N", help="cycles")
    add("--lr-k-decay", type=float, metavar="X", help="of cosine and poly")
    add("--warmup-lr", type=number, metavar="X", help="at the start of the warm-up")
    add("--warmup-epochs", type=number, metavar="N", help="in which the rate rises")
    add.flag("--warmup-prefix", help="the warm-up comes before the epochs of the schedule")
    add("--min-lr", type=number, metavar="X", help="at the end")
    add("--decay-milestones", type=count, nargs="+", metavar="N", help="epochs, for multistep")
    add("--decay-epochs", type=number, metavar="N",
        help="between decays (90); of wsd and rsqrt, those of the decay (a fifth)")  # fmt: skip
    add("--decay-rate", "--dr", type=number, metavar="X", help="of a decay")
    add("--cooldown-epochs", type=natural, metavar="N", help="at the last rate, after the schedule")
    add("--patience-epochs", type=natural, metavar="N", help="without progress, for plateau")


def _add_augmentation(add: Adder) -> None:
    add("--no-aug", action="store_true", help="no augmentation")
    add("--train-crop-mode", choices=["rrc", "rkrc", "rkrr", "pad"],
        help="random crops: resized, two that keep the ratio, or of the padded image (rrc)")  # fmt: skip
    add("--train-crop-padding", type=natural, metavar="N", help="pixels, with pad")
    add("--scale", type=number, nargs=2, metavar="X", help="area of a crop (0.08 1)")
    add("--ratio", type=number, nargs=2, metavar="X", help="of its sides (0.75 1.33)")
    add("--hflip", type=share, metavar="X", help="probability of a horizontal flip")
    add("--vflip", type=share, metavar="X", help="probability of a vertical flip")
    add("--color-jitter", type=number, metavar="X", help="of brightness, contrast and saturation; not beside --aa")
    add("--color-jitter-prob", type=share, metavar="X", help="its probability (1)")
    add("--grayscale-prob", type=share, metavar="X", help="probability of no colour")
    add("--gaussian-blur-prob", type=share, metavar="X", help="probability of a blur")
    add("--aa", metavar="NAME", help="AutoAugment or RandAugment, as rand-m15-n2-mstd0.5")
    add("--train-interpolation", metavar="NAME", help="random, bilinear or bicubic")
    add("--reprob", type=share, metavar="X", help="probability of random erasing")
    add("--remode", choices=["pixel", "rand", "const"], help="what it fills in")
    add("--recount", type=count, metavar="N", help="areas that it erases")
    add("--mixup", type=number, metavar="X", help="alpha of mixup")
    add("--cutmix", type=number, metavar="X", help="alpha of cutmix")
    add("--cutmix-minmax", type=number, nargs=2, metavar="X", help="part of the area, in place of alpha")
    add("--mixup-prob", type=share, metavar="X", help="probability of either")
    add("--mixup-switch-prob", type=share, metavar="X", help="probability of cutmix where both are on")
    add("--mixup-mode", choices=["batch", "pair", "elem"], help="what shares a draw")
    add("--mixup-off-epoch", type=natural, metavar="N", help="from which there is neither; 0 for never")
    add("--smoothing", type=share, metavar="X", help="of the labels")
    add.flag("--bce-loss", help="binary cross-entropy for each class")
    add("--bce-target-thresh", type=share, metavar="X", help="above which a soft label counts as 1")


def _add_machine(add: Adder) -> None:
    add("--workers", "-j", type=natural, metavar="N", help="processes that load images")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add.flag("--amp", help="mixed precision by autocast")
    add("--amp-dtype", choices=["float16", "bfloat16"], help="its type; float16 with a scaler")
    add.flag("--channels-last", help="memory format of images and weights")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile (inductor)")
    add.flag("--grad-checkpointing", help="recompute activations in the backward pass: less memory")
    add.flag("--sync-bn", help="batch norm over the images of all processes")
    add.flag("--fsdp", help="share out weights, gradients and optimiser among the processes (FSDP2)")
    add.flag("--model-ema", help="keep a moving average of the weights; it is evaluated and exported")
    add("--model-ema-decay", type=share, metavar="X", help="of the average")
    add.flag("--model-ema-warmup", help="begin with a lower decay")
