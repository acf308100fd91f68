"""The command `train`: data, network, loop, what is left in the end; alone or under torchrun."""

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ...errors import UserError
from ...weights.files import write_whole
from ..checkpoints import LAST, Diverged, StopSignal, read_state
from ..loading import usable_device
from ..outputs import check_writable, writing
from ..processes import SharedError, take_part, together
from ..validate import Measurement
from ..validation_report import wilson
from .batches import batches
from .causes import explained
from .checks import check_images
from .data import TrainData, add_pseudo_labels, open_data
from .evaluation import evaluate, figures
from .export import draw, export_model
from .loop import Training
from .model import build_model, input_config
from .options import ARGS, TrainOptions, write_args
from .plan import fit_batch, make_plan
from .records import BEST, STEPS, SUMMARY, Place
from .report import describe
from .transforms import OnDevice, build_transform

__all__ = ["train"]

SEEDS = 2**32
"""What NumPy takes."""
LOCKED = 10
"""Seconds to wait for another run's end: workers of a killed one take some to see that it is gone."""


def train(options: TrainOptions) -> int:
    """Train a classifier; write checkpoints, curves and a folder with the model into the output.

    Returns:
        The exit status: 0, after SIGTERM too, with a checkpoint; 1 if a loss is no number.

    Raises:
        UserError: training cannot begin, or not go on.
        KeyboardInterrupt: Ctrl-C, of which stderr tells how to continue.
    """
    with (
        take_part(options.device) as (device, process, processes),
        _determined(options, device),
        StopSignal() as stop,  # to the end: what is exported is finished, which takes seconds
        _locking(Path(options.output)) as lock,
    ):
        shown = options.progress if options.progress is not None else sys.stderr.isatty()
        place = Place(Path(options.output), device, process, processes, shown and not process)
        try:
            run = _Run(options, place, lock)
        except SharedError:
            if process:
                return 2  # the first one tells
            raise
        if options.dry_run:
            return 0
        try:
            return run.finish(stop)
        except Diverged as error:
            if place.is_first:
                print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if place.is_first:
                saved = run.training.saved
                again = f"--resume continues from step {saved}" if saved else "no checkpoint yet"
                print(f"interrupted at step {run.training.progress.step}; {again}", file=sys.stderr)
            raise
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"device '{device}' is out of memory; use a smaller --batch-size with --grad-accum-steps, "
                "--grad-checkpointing or --amp"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise explained(error, run.training) from error


@contextmanager
def _determined(options: TrainOptions, device: torch.device) -> Iterator[None]:
    """Torch's algorithms as the options want them, and as they were in the end."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":  # as timm's train.py
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def _locking(output: Path) -> Iterator[Callable[[], None]]:
    """What keeps other runs out of a folder, once it is called, to the end."""
    lock = FileLock(output / f".{LAST}.lock")

    def take() -> None:
        with writing("--output", output, "folder"):
            try:
                if not lock.is_locked:
                    lock.acquire(timeout=LOCKED)
            except Timeout as error:  # which is an OSError
                text = f"{output} holds a run that is still going on; wait, or give another --output"
                raise UserError(text) from error
            except NotImplementedError:  # of filelock before version 4, on a disk that knows no locks
                return

    try:
        yield take
    finally:
        lock.release()


def _check(options: TrainOptions, place: Place) -> None:
    """What can be told before data and network are looked at."""
    usable_device(place.device)
    if not 0 <= options.seed < SEEDS:
        raise UserError(f"{options.told('seed')} is not below {SEEDS}")
    if options.val_fraction and (options.val_data or options.val_split):
        given = "--val-data" if options.val_data else "--val-split"
        raise UserError(
            f"{options.told('val_fraction')} and {given} both say what to evaluate on; leave one of them out"
        )
    if options.fsdp and place.processes == 1:
        raise UserError(
            f"{options.told('fsdp')} shares out a network among processes: start them by torchrun --nproc-per-node N"
        )
    if options.fsdp and (options.freeze_epochs or options.clip_mode == "agc"):
        name, other = (
            ("freeze_epochs", "--freeze-epochs 0") if options.freeze_epochs else ("clip_mode", "--clip-mode norm")
        )
        raise UserError(
            f"{options.told(name)} does not go with {options.told('fsdp')}; give {other}, or leave --fsdp out"
        )
    if options.torchcompile and options.torchcompile not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UserError(f"{options.told('torchcompile')} is no backend of torch.compile; there are {known}")
    if options.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
        except ImportError as error:
            raise UserError('--tensorboard needs tensorboard: pip install "lambdaresnet-zoo[train]"') from error
    if place.is_first and not options.dry_run:
        _check_free(options, place.output)
        check_writable("--output", place.output, folder=True)


def _check_free(options: TrainOptions, output: Path) -> None:
    """Whether there is no run in the folder of one that begins."""
    begins = options.resume is None or _taken_over(options, output) is not None
    if begins and (output / LAST).exists():
        raise UserError(f"{output} holds a run; continue it with --resume, or give another --output")


def _taken_over(options: TrainOptions, output: Path) -> Path | None:
    """The checkpoint of another folder that a run goes on from."""
    path = Path(options.resume) if options.resume else output / LAST
    return None if path.parent.resolve() == output.resolve() else path


def _take_output(output: Path, options: TrainOptions, lock: Callable[[], None]) -> None:
    """Take the folder of the run, which is made, for this run alone, and write the options into it."""
    with writing("--output", output, "folder"):
        output.mkdir(parents=True, exist_ok=True)
        lock()
        _check_free(options, output)  # another run may have begun and ended since
        write_args(output, options)


class _Run:
    """A run, ready to begin: all that can be wrong before the first step is."""

    def __init__(self, options: TrainOptions, place: Place, lock: Callable[[], None]) -> None:
        self.options, self.place, self.lock = options, place, lock
        together(partial(_check, options, place))
        self.data: TrainData = together(partial(open_data, options, place.process, place.processes))
        check_images(self.data, options, place.process, place.processes, place.progress)
        if options.pseudo_labels:
            together(partial(add_pseudo_labels, self.data, options))
        self.options = options = fit_batch(options, self.data.count, place.processes)
        self.config: dict[str, Any] = {}
        self.training: Training = together(self._build)
        self.found: tuple[int, Measurement] | None = None
        """The last evaluation and its epoch."""
        if not options.dry_run:
            together(self._claim)
        if place.is_first:
            self._tell()

    def _tell(self) -> None:
        """What the run is, on stdout."""
        training = self.training
        if training.progress.step:
            print(f"continues from step {training.progress.step} of {training.plan.steps}")
        print(describe(training.model, self.data, self.config, self.options, training.plan, self.place))
        sys.stdout.flush()

    def _claim(self) -> None:
        """Take the output folder for this run, with what a checkpoint of another folder has beside it."""
        if not self.place.is_first:
            return
        output = self.place.output
        _take_output(output, self.options, self.lock)
        for name in (LAST, BEST, STEPS, SUMMARY, ARGS):  # what a killed process was writing
            for left in output.glob(f".{name}.*.tmp"):
                left.unlink(missing_ok=True)
        resumed = _taken_over(self.options, output)
        if resumed is None:
            return
        try:
            for source, name in ((resumed, LAST), *((resumed.parent / name, name) for name in (BEST, STEPS, SUMMARY))):
                if source.exists():
                    write_whole(output / name, partial(shutil.copyfile, source))
        except OSError as error:
            raise UserError(f"{output} cannot take over {resumed}: {error.strerror}; make room") from error

    def _build(self) -> Training:
        options, place, data = self.options, self.place, self.data
        model = build_model(options, data.classes)
        self.config = input_config(model, options)
        transform = build_transform(options, self.config)
        plan = make_plan(options, data, place.processes)
        model = model.to(place.device)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
        on_device = OnDevice(options, self.config, len(data.classes), place.device, data.soft)
        pinned = place.device.type == "cuda"

        def from_step(step: int) -> Iterator[Any]:
            return batches(data, transform, options, plan, step, place.process, place.processes, pinned)

        training = Training(model, data, on_device, from_step, options, plan, place)
        if options.resume is not None and not options.dry_run:
            self._resume(training)
        return training

    def _resume(self, training: Training) -> None:
        path = Path(self.options.resume) if self.options.resume else None
        if path is None and not training.checkpoint.exists():
            if self.place.is_first:
                print(f"no checkpoint in {self.place.output} yet: the run begins", file=sys.stderr)
            return
        if self.place.is_first and _taken_over(self.options, self.place.output) is None:
            self.lock()  # what is read is the last of its run
        training.resume(path)

    def finish(self, stop: StopSignal) -> int:
        """Train, and write what is left in the end; returns the exit status."""
        options, place, training = self.options, self.place, self.training
        if options.tensorboard and place.is_first:
            from torch.utils.tensorboard import SummaryWriter

            training.board = SummaryWriter(str(place.output / "tensorboard"), purge_step=training.progress.step)
        finished = training.finish(self._evaluate if self.data.validation is not None else None, stop)
        if training.board is not None:
            training.board.close()
        if not finished:
            if place.is_first:
                print(
                    f"stopped at step {training.progress.step}; --resume continues from {training.checkpoint}",
                    file=sys.stderr,
                )
            return 0
        return self._leave()

    def _evaluate(self, epoch: int) -> dict[str, float]:
        network = self.training.whole_network()
        found = evaluate(network, self.data, self.config, self.options, self.place.device, self.place.progress)
        if found is None:
            return {}
        self.training.count_bad(found.bad)
        if found.count and not math.isfinite(found.loss):  # the same in every process
            raise self.training.taken_back()
        row = figures(found)
        if self.place.is_first:
            print(
                f"epoch {epoch} of {self.training.plan.epochs}: top-1 {row['eval_top1']:.2f} %, "
                f"loss {row['eval_loss']:.4f}"
            )
            sys.stdout.flush()
        self.found = (epoch, found)
        return row

    def _leave(self) -> int:
        """Export the best weights, with their figures and pictures."""
        options, place, training = self.options, self.place, self.training
        best = training.progress.best
        network = training.whole_network()
        if best:
            self._load_best(network)
        found = None
        if best:
            if self.found is not None and self.found[0] == int(best["epoch"]):
                found = self.found[1]
            else:
                found = evaluate(network, self.data, self.config, options, place.device, place.progress)
                if found is None:
                    return 0  # the checkpoint is of the last step: --resume begins here
        if not place.is_first:
            return 0
        count = found.count if found else 0
        folder = export_model(place.output, network, self.data, self.config, options, best, count)
        for problem in draw(place.output, found.confusion if found else None, self.data.classes):
            print(f"not drawn: {problem}", file=sys.stderr)
        if training.bad:
            print(f"left out: {len(training.bad)} damaged images", file=sys.stderr)
        print(self._summary(found, folder))
        return 0

    def _load_best(self, network: nn.Module) -> None:
        """The best weights, from the first process's file."""
        if self.place.is_first:
            network.load_state_dict(read_state(self.place.output / BEST, self.place.device)["model"])
        if self.place.processes > 1:
            for value in network.state_dict().values():
                torch.distributed.broadcast(value, 0)

    def _summary(self, found: Measurement | None, folder: Path) -> str:
        training = self.training
        progress = training.progress
        parts = [f"trained {progress.step} steps in {progress.seconds:.0f} s"]
        if found is not None:
            low, high = wilson(found.top1, found.count)
            parts.append(
                f"top-1 {100 * found.top1 / max(1, found.count):.2f} % (95 %: {low:.1f} to {high:.1f}) on "
                f"{found.count} images, epoch {int(progress.best['epoch'])}"
            )
        return f"{'; '.join(parts)}; local-dir:{folder}"
