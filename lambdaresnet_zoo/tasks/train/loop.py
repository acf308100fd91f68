"""The training loop: from a step to the last one, with a checkpoint at intervals and when asked to stop."""

import contextlib
import copy
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import UserError, first_line
from ..checkpoints import LAST, StopSignal, check_run, read_state, write_state
from .data import TrainData
from .model import Freezing
from .options import TrainOptions
from .plan import Plan, make_optimizer, make_schedule
from .records import BEST, STEPS, SUMMARY, Diverged, Place, Progress, append_row, is_better
from .samples import TrainBatch
from .transforms import OnDevice
from .wrapping import States, shard, synchronise_norms, wrap

__all__ = ["Training"]

LOOK = 10  # steps between two looks at a GPU's losses and the others' wishes, each of which waits for it
NEVER = 2**62


class Training:
    """A network in training.

    Args:
        model: on its device.
        data: to learn from.
        on_device: prepares batches, and has the loss.
        batches: gives a process's batches from a step on.
        options: how.
        plan: the steps.
        place: where.

    Raises:
        UserError: optimiser, schedule or frozen stages cannot be had.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainData,
        on_device: OnDevice,
        batches: Callable[[int], Iterator[TrainBatch]],
        options: TrainOptions,
        plan: Plan,
        place: Place,
    ) -> None:
        self.data, self.on_device, self.batches = data, on_device, batches
        self.options, self.plan, self.place = options, plan, place
        if options.sync_bn and place.processes > 1:
            model = synchronise_norms(model, place.device)
        self.model: Any = model
        self.freezing = Freezing(model, options)
        self.ema: Any = None
        if options.model_ema:
            decay, warmup = options.model_ema_decay, options.model_ema_warmup
            self.ema = ModelEmaV3(model, decay=decay, use_warmup=warmup, foreach=not options.fsdp)
        self.states = States(options.fsdp)
        self._plain = copy.deepcopy(model) if options.fsdp else None
        if options.fsdp:
            for network in (self.model, self.ema.module if self.ema else None):
                if network is not None:
                    shard(network, place.device, place.processes)
        if options.torchcompile:
            self.model.compile(backend=options.torchcompile)
        self.optimizer = make_optimizer(model, options, plan)
        self.schedule = make_schedule(self.optimizer, options, plan)
        self.half = getattr(torch, options.half) if options.half else torch.float32
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.half is torch.float16)
        self.progress = Progress(evaluated=True)
        self.saved = 0
        self.bad: dict[str, str] = {}
        self.sums = torch.zeros(2, device=place.device)  # losses of the epoch, and since the last row
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=place.device)
        self.board: Any = None
        """Of TensorBoard, where it is wanted."""
        self.network: nn.Module = self.model
        self._wrapped: bool | None = None
        """Whether the network was wrapped for the classifier alone."""

    @property
    def evaluated_network(self) -> Any:
        """The network that is evaluated and exported: the average where there is one."""
        return self.ema.module if self.ema else self.model

    def whole_network(self) -> nn.Module:
        """The evaluated network, whole and the same in every process."""
        network = self.evaluated_network
        if self._plain is not None:
            self._plain.load_state_dict(self.states.model(network))
            network = self._plain
        if self.place.processes > 1:
            for statistics in network.buffers():
                torch.distributed.broadcast(statistics, 0)
        return network.eval()

    @property
    def checkpoint(self) -> Path:
        """The run's last checkpoint."""
        return self.place.output / LAST

    @property
    def rate(self) -> float:
        """The learning rate, without any layer's scale."""
        groups = self.optimizer.param_groups
        return max(group["lr"] for group in groups)

    def run_identity(self) -> dict[str, Any]:
        """What a checkpoint must be of for this run to go on from it."""
        identity: dict[str, Any] = {
            **self.options.identity(),
            "images": self.data.count,
            "classes": len(self.data.classes),
            "batch": self.plan.batch,
            "lr": self.plan.lr,
        }
        if self.data.images is None:  # each worker has shards of its own
            identity["workers"] = self.options.workers
            identity["processes"] = self.place.processes
        return identity

    def resume(self, path: Path | None = None) -> None:
        """Go on from a checkpoint, by default the run's own.

        Raises:
            UserError: it is missing, damaged, or of another run.
        """
        path = path or self.checkpoint
        state = read_state(path, self.place.device)
        check_run(path, state.get("run", {}), self.run_identity())
        self.states.set_model(self.model, state["model"])
        if self.ema:
            self.states.set_model(self.ema.module, state["ema"])
        self.states.set_optimizer(self.model, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.options.sched == "plateau":
            self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        self.bad = dict(state["bad"])
        self.sums.copy_(state["sums"])
        self.saved = self.progress.step

    def save(self) -> None:
        """Write the checkpoint; the first process alone writes, and where there is FSDP2 all take part.

        Raises:
            Diverged: the weights are no numbers any more.
            UserError: it cannot be written; the one before is whole.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in _locals(self.model)):
            raise Diverged(f"the weights are no numbers after step {self.progress.step}; {self._last_good()}")
        progress = self.progress
        state = {
            "run": self.run_identity(),
            "progress": vars(progress).copy(),
            "model": self.states.model(self.model),
            "optimizer": self.states.optimizer(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state_dict() if self.options.sched == "plateau" else {},
            "sums": self.sums,
            "bad": dict(self.bad),
        }
        if self.ema:
            state["ema"] = self.states.model(self.ema.module)
        if self.place.is_first:
            self.write(self.checkpoint, state)
        self.saved = progress.step

    def write(self, path: Path, state: dict[str, Any]) -> None:
        """Write a state, whole.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write_state(path, state)
        except (OSError, RuntimeError) as error:  # torch's writer raises either on a full disk
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{path} cannot be written ({reason}); {self._last_good()}: make room, then --resume") from error

    def finish(self, evaluate: Callable[[int], dict[str, float]] | None) -> bool:
        """Train to the last step.

        Args:
            evaluate: called with the number of epochs done; gives a row of figures, empty where it was interrupted.

        Returns:
            Whether it was finished; False if SIGTERM stopped it, with a checkpoint written.

        Raises:
            Diverged: the loss is NaN or infinite.
            UserError: a checkpoint cannot be written, or an image cannot be read.
        """
        plan, progress, place = self.plan, self.progress, self.place
        with StopSignal() as stop:
            if not progress.evaluated and not self._end_epoch(evaluate, stop):
                return False
            self._begin_epoch(progress.step // plan.steps_per_epoch)
            bar = tqdm(
                range(progress.step, plan.steps),
                desc="train",
                initial=progress.step,
                total=plan.steps,
                disable=not place.progress,
                dynamic_ncols=True,
            )
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
                if progress.step % self.options.log_interval == 0:
                    self._log_step(bar)
                if saves or stops:
                    progress.seconds += time.perf_counter() - start
                    progress.evaluated = not ends
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
        if figures:
            name = f"eval_{options.eval_metric}"
            if not progress.best or is_better(figures[name], progress.best[name], options.eval_metric):
                progress.best = {key: float(number) for key, number in row.items()}
                state = self.states.model(self.evaluated_network)
                if self.place.is_first:
                    self.write(self.place.output / BEST, {"model": state, "row": progress.best})
        if options.sched == "plateau":
            metric = figures.get(f"eval_{options.eval_metric}", row["train_loss"])
            self.schedule.step(epochs, metric)
        if self.place.is_first:
            self._log_epoch(row)
        progress.epoch_count = 0
        self.sums[0] = 0
        self.freezing.set_mode()
        return not stop.requested or self._save_stopped()

    def _save_stopped(self) -> bool:
        """Save after an evaluation during which there was a signal."""
        self.save()
        return False

    def _update(self, batches: Iterator[TrainBatch], epoch: int) -> None:
        """Gradients of the update's passes, then the update."""
        place, options, progress = self.place, self.options, self.progress
        passes = options.grad_accum_steps
        total = torch.zeros((), device=place.device)
        for number in range(passes):
            batch = next(batches)
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
            parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
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

    def _seed(self, number: int) -> None:
        """Seed all that a pass draws from."""
        seed = self.options.seed * 1_000_003 + number
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

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
            raise Diverged(
                f"the loss is no number at step {first_bad}, learning rate {self.rate:.6g}; {self._last_good()}"
            )
        return stop < 0

    def _mean(self, values: Tensor) -> Tensor:
        if self.place.processes > 1:
            torch.distributed.all_reduce(values)
            values /= self.place.processes
        return values

    def _last_good(self) -> str:
        return f"the last good checkpoint: {f'step {self.saved} in {self.checkpoint}' if self.saved else 'none yet'}"

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
            append_row(self.place.output / STEPS, {"step": progress.step, "loss": f"{loss:.7g}", "lr": f"{self.rate:.6g}"})

    def _log_epoch(self, row: dict[str, Any]) -> None:
        if self.board is not None:
            for key in ("train_loss", "eval_loss", "eval_top1", "eval_top5"):
                if key in row:
                    self.board.add_scalar(key, row[key], row["epoch"])
        columns = ("epoch", "step", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")
        shown = {key: row.get(key, "") for key in columns}
        shown |= {key: f"{value:.7g}" for key, value in shown.items() if isinstance(value, float)}
        append_row(self.place.output / SUMMARY, {**shown, "seconds": f"{self.progress.seconds:.1f}"})


def _locals(model: nn.Module) -> Iterator[Tensor]:
    """The parameters, of those that are shared out this process's part."""
    for parameter in model.parameters():
        value: Any = parameter.detach()
        yield value.to_local() if hasattr(value, "to_local") else value
