"""The command `lambdaresnet-zoo`: one subcommand for each task.

torch and timm are imported by the tasks, not here.
"""

import argparse
import io
import os
import sys

from .errors import UserError

__all__ = ["main"]

DEFAULT_MODEL = "lambdaresnet32px.cifar10"
INTERRUPTED = 130  # 128 and the number of the signal, as a shell reports it
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
    options = _parser().parse_args(arguments)
    try:
        status = _predict(options)
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


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="lambdaresnet-zoo", description="LambdaNetworks for timm.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    _add_predict(tasks.add_parser("predict", help="predict the classes of images", description=_predict.__doc__))
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(parser=parser)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder to search, or a quoted glob pattern")
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="name, local-dir:PATH or hf-hub:ID (%(default)s)")
    add("--checkpoint", metavar="FILE", help="weights to use: .safetensors or a state_dict saved by torch")
    add("--topk", type=_count, default=5, metavar="N", help="classes to show for each image (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--batch-size", type=_count, default=16, metavar="N", help="images at once (%(default)s)")
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
