"""The training loop: from a step to the last one, with a checkpoint at intervals and when asked to stop."""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import Tensor
from tqdm import tqdm

from ...errors import UserError
from ..checkpoints import StopSignal, steps_left
from .records import BEST, STEPS, SUMMARY, append_row, is_better
from .samples import TrainBatch
from .state import NEVER, TrainState
from .wrapping import wrap

__all__ = ["Training"]

LOOK = 10  # steps between two looks at a GPU's losses and the others' wishes, each of which waits for it


class Training(TrainState):
    """The loop over a ``TrainState``; made with the same arguments."""

    def finish(self, evaluate: Callable[[int], dict[str, float]] | None, stop: StopSignal) -> bool:
        """Train to the last step.

        Args:
            evaluate: called with the number of epochs done; gives a row of figures, empty where it was interrupted.
            stop: SIGTERM, also of before the first step.

        Returns:
            Whether it was finished; False if SIGTERM stopped it, with a checkpoint written.

        Raises:
            Diverged: the loss is NaN or infinite, or by ``evaluate``, its figures are.
            UserError: a checkpoint cannot be written, or an image cannot be read.
        """
        plan, progress, place = self.plan, self.progress, self.place
        if not progress.evaluated and not self._end_epoch(evaluate, stop):
            return False
        self._begin_epoch(progress.step // plan.steps_per_epoch)
        bar = steps_left(progress.step, plan.steps, place.progress)
        batches = self.batches(progress.step)
        start = time.perf_counter()
        for step in bar:
            epoch, within = divmod(step, plan.steps_per_epoch)
            if not within:
                self._begin_epoch(epoch)
            if self.schedule is not None:
                self.schedule.step_update(step)
            self._update(batches, epoch)
            progress.step = step + 1
            ends = within + 1 == plan.steps_per_epoch
            saves = ends or (self.options.checkpoint_steps and progress.step % self.options.checkpoint_steps == 0)
            stops = False
            if saves or place.device.type == "cpu" or progress.step % LOOK == 0:
                stops = self._look(stop.requested)
            if ends or progress.step % self.options.log_interval == 0:  # as timm's train.py
                self._log_step(bar)
            if saves or stops:
                progress.seconds += time.perf_counter() - start
                progress.evaluated = not ends
                if ends and evaluate is not None:
                    self.keep_before()
                self.save()
                start = time.perf_counter()
            if stops:
                return False
            if ends:
                if not self._end_epoch(evaluate, stop):
                    return False
                start = time.perf_counter()
        return True

    def _begin_epoch(self, epoch: int) -> None:
        """What is trained, and in which mode, may change with the epoch."""
        head_only = self.freezing.is_head_only(epoch)
        if self._wrapped != head_only:
            self.freezing.apply(epoch)
            if self.place.processes > 1 and not self.options.fsdp:
                self.network = wrap(self.model, self.place.device)
            self._wrapped = head_only
        self.freezing.set_mode()
        if self.schedule is not None and self.options.sched != "plateau":
            self.schedule.step(epoch)

    def _end_epoch(self, evaluate: Callable[[int], dict[str, float]] | None, stop: StopSignal) -> bool:
        """Evaluate, keep the best, write the curves; False if there was a signal to stop meanwhile."""
        progress, options = self.progress, self.options
        epochs = progress.step // self.plan.steps_per_epoch
        sums = self._mean(self.sums[:1].clone())
        row: dict[str, Any] = {"epoch": epochs, "step": progress.step, "lr": self.rate}
        row["train_loss"] = float(sums[0]) / max(1, progress.epoch_count)
        due = epochs % options.val_interval == 0 or epochs == self.plan.epochs
        figures = evaluate(epochs) if evaluate is not None and due else {}
        if evaluate is not None and due and not figures:
            return False  # interrupted; it begins with the evaluation when it goes on
        row |= figures
        progress.evaluated = True
        self.forget_before()
        if figures and is_better(figures, progress.best, options.eval_metric):
            progress.best = {key: float(number) for key, number in row.items()}
            state = self.states.model(self.evaluated_network)
            if self.place.is_first:
                self.write(self.place.output / BEST, {"model": state, "row": progress.best})
        if options.sched == "plateau":
            # Without a figure the rate stays as it is, but for the warm-up.
            metric = row["train_loss"] if evaluate is None else figures.get(f"eval_{options.eval_metric}")
            self.schedule.step(epochs, metric)
        if self.place.is_first:
            self._log_epoch(row)
        progress.epoch_count = 0
        self.sums[0] = 0
        self.freezing.set_mode()
        if not self._look(stop.requested):
            return True
        self.save()
        return False

    def _update(self, batches: Iterator[TrainBatch], epoch: int) -> None:
        """Gradients of the update's passes, then the update."""
        place, options, progress = self.place, self.options, self.progress
        passes = options.grad_accum_steps
        total = torch.zeros((), device=place.device)
        for number in range(passes):
            batch = next(batches, None)
            if batch is None:
                raise UserError(f"{self.data.name} ended before step {progress.step + 1}; see --train-num-samples")
            self._note(batch)
            images = batch.images.to(place.device, non_blocking=True)
            target = batch.target.to(place.device, non_blocking=True)
            self._seed((progress.step * passes + number) * place.processes + place.process)
            images, target = self.on_device(images, target, epoch)
            if options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self._without_reduction(number + 1 < passes):
                with torch.autocast(place.device.type, dtype=self.half, enabled=self.half is not torch.float32):
                    loss = self.on_device.loss(self.network(images), target)
                self.scaler.scale(loss / passes).backward()
            total += loss.detach().float() / passes
        if options.clip_grad:
            self.scaler.unscale_(self.optimizer)
            clipped = model_parameters(self.model, exclude_head=options.clip_mode == "agc")  # as timm's train.py
            parameters = [parameter for parameter in clipped if parameter.grad is not None]
            dispatch_clip_grad(parameters, value=options.clip_grad, mode=options.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, step=progress.step + 1)
        self.sums += total
        progress.epoch_count += 1
        progress.window_count += 1
        here = torch.where(total.isfinite(), NEVER, progress.step + 1)
        self.first_bad = torch.minimum(self.first_bad, here)

    @contextlib.contextmanager
    def _without_reduction(self, without: bool) -> Iterator[None]:
        """Gradients are added up over the processes in the last pass of an update."""
        if self.options.fsdp:
            self.model.set_requires_gradient_sync(not without)
            yield
        elif without and self.place.processes > 1:
            with self.network.no_sync():  # type: ignore[operator]
                yield
        else:
            yield

    def _seed(self, number: int) -> None:
        """Seed all that a pass draws from."""
        seed = self.options.seed * 1_000_003 + number
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _note(self, batch: TrainBatch) -> None:
        """Take note of damaged images, or stop at the first."""
        for name, problem in batch.problems:
            if not self.options.skip_bad:
                raise UserError(f"{name}: {problem}; or replace such images with --skip-bad")
            if name not in self.bad:
                tqdm.write(f"left out: {name}: {problem}", file=sys.stderr)
            self.bad[name] = problem
        if batch.broken:
            raise UserError(batch.broken)

    def count_bad(self, found: list[tuple[str, str]]) -> None:
        """Take note of damaged images that an evaluation left out."""
        for name, problem in found:
            if name not in self.bad and self.place.is_first:
                tqdm.write(f"left out: {name}: {problem}", file=sys.stderr)
            self.bad[name] = problem

    def _look(self, stopping: bool) -> bool:
        """Whether any process is to stop; all do the same.

        Raises:
            Diverged: a loss was no number.
        """
        flags = torch.stack([self.first_bad, torch.full_like(self.first_bad, -int(stopping))])
        if self.place.processes > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN)
        first_bad, stop = flags.tolist()
        if first_bad != NEVER:
            raise self.diverged(f"the loss is no number at step {first_bad}, learning rate {self.rate:.6g}")
        return stop < 0

    def _mean(self, values: Tensor) -> Tensor:
        if self.place.processes > 1:
            torch.distributed.all_reduce(values)
            values /= self.place.processes
        return values

    def _log_step(self, bar: Any) -> None:
        """Append a row; steps that are run again replace what followed."""
        progress = self.progress
        loss = float(self._mean(self.sums[1:].clone())[0]) / progress.window_count
        self.sums[1] = 0
        progress.window_count = 0
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{self.rate:.2g}")
        if self.board is not None:
            self.board.add_scalar("loss", loss, progress.step)
            self.board.add_scalar("lr", self.rate, progress.step)
        if self.place.is_first:
            append_row(
                self.place.output / STEPS, {"step": progress.step, "loss": f"{loss:.7g}", "lr": f"{self.rate:.6g}"}
            )

    def _log_epoch(self, row: dict[str, Any]) -> None:
        if self.board is not None:
            for key in ("train_loss", "eval_loss", "eval_top1", "eval_top5"):
                if key in row:
                    self.board.add_scalar(key, row[key], row["epoch"])
        columns = ("epoch", "step", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")
        shown = {key: row.get(key, "") for key in columns}
        shown |= {key: f"{value:.7g}" for key, value in shown.items() if isinstance(value, float)}
        append_row(self.place.output / SUMMARY, {**shown, "seconds": f"{self.progress.seconds:.1f}"})
