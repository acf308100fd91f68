"""The command `lambdaresnet-zoo`: one subcommand for each task.

torch and timm are imported by the tasks, not here.
"""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import count, fraction, keyword, points, positive
from .errors import UserError, first_line
from .startup import INTERRUPTED

if TYPE_CHECKING:
    from .conversion.convert import Options

__all__ = ["main"]

DEFAULT_MODEL = "lambdaresnet32px.cifar10"
KWARGS = "what the network was built with, beside its classes: self_attn_kwargs={'scope': 7}"
BROKEN_PIPE = 141


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        The exit status: 0; 1 if a part failed; 2 if nothing could be done; 130 after Ctrl-C; 141
        if whoever read the output has stopped reading.

    Raises:
        SystemExit: from argparse: 0 after --help and --version, 2 for wrong usage.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        _check_environment(options)
        status = options.run(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _check_environment(options: argparse.Namespace) -> None:
    """See that the layers can use what the environment says of their plan, before a model is built.

    Raises:
        UserError: they cannot.
    """
    if not any(f"LAMBDARESNET_ZOO_{name}" in os.environ for name in ("IMPL", "COSTS", "MEMORY")):
        return
    import torch

    from .layers.plan import Shape, make_plan

    forced = os.environ.get("LAMBDARESNET_ZOO_IMPL", "")
    computes = options.task != "plan" and (hasattr(options, "device") or getattr(options, "verify", None))
    device = getattr(options, "device", "cpu") or ("cuda" if torch.cuda.is_available() else "cpu")
    order = "lambda" if forced == "kernel" and not computes else "auto"
    try:
        make_plan(Shape(*[1] * 9), torch.float32, device.partition(":")[0], order=order)
    except ValueError as error:
        raise UserError(first_line(error)) from error


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="lambdaresnet-zoo", description="LambdaNetworks for timm.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for name, run, add_arguments in (
        ("predict", _predict, _add_predict),
        ("validate", _validate, _add_validate),
        ("label", _label, _add_label),
        ("convert", _convert, _add_convert),
        ("publish", _publish, _add_publish),
        ("published", _published, _add_published),
        ("plan", _plan, _add_plan),
        ("benchmark", _benchmark, _add_benchmark),
        ("detect", _detect, _add_detect),
        ("train", _train, _add_train),
    ):
        summary = (run.__doc__ or "").splitlines()[0].rstrip(".")
        task = tasks.add_parser(name, help=summary[0].lower() + summary[1:], description=f"{summary}.")
        task.set_defaults(parser=task, run=run)
        add_arguments(task)
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder to search, or a quoted glob pattern")
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="name, local-dir:PATH or hf-hub:ID (%(default)s)")
    add("--checkpoint", metavar="FILE", help="weights to use: .safetensors or a state_dict saved by torch")
    add("--topk", type=count, default=5, metavar="N", help="classes to show for each image (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--batch-size", type=count, default=16, metavar="N", help="images at once (%(default)s)")
    add("--json", action="store_true", help="write one JSON object a line")
    add("--demo", action="store_true", help="predict the photograph of a cat that scikit-image carries")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def _predict(options: argparse.Namespace) -> int:
    """Predict the classes of images and print the most probable ones."""
    if not options.images and not options.demo:
        options.parser.error("give at least one IMAGE, or --demo")
    from .tasks import predict

    return predict.run(
        options.images,
        options.model,
        checkpoint=options.checkpoint,
        topk=options.topk,
        device=options.device,
        batch_size=options.batch_size,
        as_json=options.json,
        demo=options.demo,
        progress=options.progress,
    )


def _add_validate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", "-m", required=True, metavar="NAME", help="as predict's, or a quoted pattern: 'lambdaresnet*'")
    add("--data", "--data-dir", default="", metavar="PATH", help="ImageFolder, tar, folder of parquet or webdataset")
    add("--dataset", default="", metavar="NAME", help="timm's name of the data: hfds/..., hfids/..., wds/, torch/...")
    add("--split", default="", metavar="NAME", help="of the data (validation, or else test)")
    add("--num-samples", type=count, metavar="N", help="images in a stream whose length is not known")
    add("--class-map", default="", metavar="FILE", help="classes of the model in its order, a line each as in the data")
    add("--input-key", metavar="KEY", help="where the data has its images")
    add("--target-key", metavar="KEY", help="where the data has its classes")
    add(
        "--real-labels",
        nargs="?",
        default="",
        const="timm",
        metavar="FILE",
        help="ReaL's labels (timm's copy)",
    )
    add("--valid-labels", default="", metavar="FILE", help="numbers of the outputs to compare, a line each")
    add("--checkpoint", default="", metavar="FILE", help="weights to use instead of the model's own")
    add("--use-ema", action="store_true", help="of a checkpoint, the moving average of its weights")
    add("--num-classes", type=count, metavar="N", help="classes that the model must have")
    add("--img-size", type=count, metavar="N", help="pixels of the input (the model's)")
    add("--crop-pct", type=fraction, metavar="X", help="centre crop (the model's)")
    add("--crop-mode", default="", choices=["center", "squash", "border"], help="(the model's)")
    add("--interpolation", default="", choices=["bilinear", "bicubic", "nearest", "lanczos"], help="(the model's)")
    add("--upright", action="store_true", help="turn images as their EXIF orientation says, which timm does not")
    add("--batch-size", "-b", type=count, default=256, metavar="N", help="images at once (%(default)s)")
    add("--workers", "-j", type=int, default=4, metavar="N", help="processes that load images (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--amp", action="store_true", help="mixed precision by autocast")
    add("--amp-dtype", default="float16", choices=["float16", "bfloat16"], help="(%(default)s)")
    add("--channels-last", action="store_true", help="memory format of images and weights")
    add("--torchcompile", nargs="?", default="", const="inductor", metavar="BACKEND", help="torch.compile (%(const)s)")
    add("--reparam", action="store_true", help="fold batch norms first, by timm's reparameterize_model")
    add("--skip-bad", action="store_true", help="leave damaged images out, list them and mark the result")
    add("--per-class", default="", metavar="FILE", help="write each class's figures, csv")
    add("--tolerance", type=points, metavar="X", help="exit with 1 if top-1 is further from the published, in points")
    add("--results", "--results-file", default="", metavar="FILE", help="append a row, .csv or .json; skip finished")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def _validate(options: argparse.Namespace) -> int:
    """Validate models on labelled images, beside their published figures."""
    from dataclasses import fields

    from .tasks.validate_run import Options, run

    if options.workers < 0:
        options.parser.error(f"--workers {options.workers} is less than 0")
    return run(Options(**{field.name: getattr(options, field.name) for field in fields(Options)}))


def _add_label(parser: argparse.ArgumentParser) -> None:
    from .tasks.label.command import add_arguments

    add_arguments(parser)


def _label(options: argparse.Namespace) -> int:
    """Label images without labels by a teacher, to train on them."""
    from .tasks.label.command import run

    return run(options)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a checkpoint, a folder with one, organisation/model on the Hub, or a model")
    add("folder", type=Path, metavar="DEST", help="the folder to write")
    add("--warm-start", action="store_true", help="SOURCE is a ResNet-RS; start the LambdaResNet that DEST is named as")
    _add_conversion(parser)
    add("--verify", metavar="IMAGE", help="print the five most probable classes of an image")
    add("--report", type=Path, metavar="FILE", help="write a row for each tensor, csv")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="FOLDER_OR_CHECKPOINT", help="a folder that convert wrote, or what convert takes")
    add("repository", metavar="REPO", help="organisation/model on the Hub, created if need be")
    add("--private", action="store_true", help="create the repository private")
    add("--dry-run", action="store_true", help="check all, and say what would be uploaded")
    parser.set_defaults(warm_start=False)
    _add_conversion(parser)


def _add_conversion(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="", metavar="NAME", help="the model that the weights are of (recognised by its tensors)")
    add("--model-kwargs", type=keyword, default=[], nargs="+", action="extend", metavar="KEY=VALUE", help=KWARGS)
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights (half precision stays as it is)")
    add("--no-ema", dest="use_ema", action="store_false", help="not the moving average that training kept")
    add("--drop", action="append", default=[], metavar="PATTERN", help="leave keys behind, as 'aux_head.*'; repeatable")
    add("--labels", metavar="FILE", help="names of the classes, one a line")
    add("--license", default="", metavar="ID", help="of the weights, as the Hub spells it: apache-2.0")
    add("--data", default="", metavar="TEXT", help="what the weights were trained on, for the card")
    add("--recipe", default="", metavar="TEXT", help="how they were trained, for the card")


def _convert(options: argparse.Namespace) -> int:
    """Convert weights of any known format into a folder for timm, the Hub and transformers."""
    from .tasks import convert

    return convert.run(options.source, options.folder, _conversion(options), options.verify, options.report)


def _publish(options: argparse.Namespace) -> int:
    """Publish a model on the Hugging Face Hub."""
    from .tasks import publish

    return publish.run(options.source, options.repository, _conversion(options), options.private, options.dry_run)


def _add_published(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("patterns", nargs="*", metavar="PATTERN", help="of models' names, quoted, as 'lambdaresnet152*' (all)")
    add("--dataset", default="", metavar="NAME", help="figures on this dataset alone, as imagenet-1k")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="write csv, with every column")
    form.add_argument("--json", action="store_true", help="write one JSON object a line, with every column")


def _published(options: argparse.Namespace) -> int:
    """Print the figures that the paper and others published."""
    from .tasks import published

    return published.run(options.patterns, options.dataset, options.csv, options.json)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="whose lambda layers are planned (%(default)s)")
    add("--img-size", type=count, metavar="N", help="pixels of the input (the model's)")
    add("--batch-size", "-b", type=count, default=8, metavar="N", help="images at once (%(default)s)")
    add("--training", action="store_true", help="with the backward pass")
    add("--device", default="cpu", help="cpu or cuda; without one here the kernel is left out (%(default)s)")
    add("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="(%(default)s)")
    add("--order", default="auto", choices=["auto", "lambda", "query", "convolution", "kernel"], help="force one")
    add("--memory", type=positive, default=0.0, metavar="MIB", help="budget of scratch (the plan's own)")
    add("--fit", type=Path, metavar="FILE", help="instead, time every order here and write the cost model, json")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def _plan(options: argparse.Namespace) -> int:
    """Explain how a model's lambda layers are contracted, or fit the cost model to this machine."""
    from .tasks import plan

    if options.fit:
        return plan.fit(options.fit, options.device, options.dtype, options.progress)
    return plan.explain(
        options.model,
        options.img_size,
        options.batch_size,
        options.training,
        options.device,
        options.dtype,
        options.order,
        options.memory,
    )


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help="layer, model, growth, roofline (all)")
    add("--device", default="", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--amp", action="store_true", help="mixed precision by autocast")
    add("--amp-dtype", default="bfloat16", choices=["float16", "bfloat16"], help="(%(default)s)")
    add("--cuda-graphs", action="store_true", help="time passes as CUDA graphs, without what launching them takes")
    add("--batch-size", "-b", type=count, nargs="+", default=[], metavar="N", help="batches to measure (the part's)")
    add("--shapes", nargs="+", default=[], metavar="DIM,SIZE,SCOPE", help="of the layer: 512,14,23 (a grid)")
    add("--models", nargs="+", default=[], metavar="NAME@SIZE", help="or quoted patterns: 'lambdaresnet50@*' (all)")
    add("--repeats", type=count, default=7, metavar="N", help="rounds at most, each of all in turn (%(default)s)")
    add("--threads", type=count, metavar="N", help="of the CPU (torch's choice)")
    add("--memory", type=positive, default=8.0, metavar="GIB", help="that one pass may take on a CPU (%(default)s)")
    add("--quick", action="store_true", help="a few shapes and batches: whether it runs, in about a minute")
    add("--check", action="store_true", help="exit with 1 if a target of the project is missed")
    add("--results", default="", metavar="PATH", help="a folder, or one part's .csv: add rows, skip finished ones")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def _benchmark(options: argparse.Namespace) -> int:
    """Measure the layer and the networks beside others, in time and memory."""
    from dataclasses import fields

    from .tasks.benchmark.run import Options, run

    return run(Options(**{field.name: getattr(options, field.name) for field in fields(Options)}))


def _add_detect(parser: argparse.ArgumentParser) -> None:
    from .tasks.detect.command import add_arguments

    add_arguments(parser)


def _detect(options: argparse.Namespace) -> int:
    """Train, validate and apply detectors on COCO-format data."""
    from .tasks.detect.command import run

    return run(options)


def _add_train(parser: argparse.ArgumentParser) -> None:
    from .tasks.train.command import add_arguments

    add_arguments(parser)


def _train(options: argparse.Namespace) -> int:
    """Train or fine-tune a classifier, on one machine or many."""
    from .tasks.train.command import run

    return run(options)


def _conversion(options: argparse.Namespace) -> "Options":
    import torch

    from .conversion.convert import Options
    from .tasks.convert import read_labels

    return Options(
        model=options.model,
        model_kwargs=dict(options.model_kwargs),
        use_ema=options.use_ema,
        drop=tuple(options.drop),
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        label_names=read_labels(options.labels) if options.labels else (),
        license=options.license,
        data=options.data,
        recipe=options.recipe,
        warm_start=options.warm_start,
    )
