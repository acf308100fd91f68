"""The training loop: from a step to the last one, with a checkpoint at intervals and when asked to stop."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import MultiStepLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ...errors import UserError, first_line
from ...weights.files import read_rows, write_rows
from ..checkpoints import LAST, Diverged, StopSignal, check_run, read_state, steps_left, write_state
from ..outputs import writing
from ..sampling import Numbers
from .recipe import Recipe
from .samples import Samples, collate

__all__ = ["Loop", "Training"]

LOG = "log.csv"
CONTENT = ("step", "model", "optimizer", "scaler")  # of a checkpoint, beside what run it is of


@dataclass(frozen=True)
class Loop:
    """How a run is carried out; none of it changes what is learnt, but for rounding."""

    output: Path
    device: torch.device
    process: int = 0
    processes: int = 1
    accumulate: int = 1
    """Passes whose gradients are added up for a step."""
    amp_dtype: str = ""
    """float16 or bfloat16 for mixed precision; empty for float32."""
    workers: int = 4
    """Processes that load images; 0 loads them in this one."""
    checkpoint_steps: int = 1000
    log_steps: int = 20
    progress: bool = False


class Training:
    """A detector in training.

    Args:
        model: a detector, on its device.
        samples: to learn from.
        recipe: how; its batch size is that of all processes together, and divides among them.
        seed: of what the model draws at random in a step.
        run: what the run is, for its checkpoint to be told from another's.
        loop: how it is carried out.

    Raises:
        UserError: the optimiser is none of timm's.
    """

    def __init__(
        self, model: nn.Module, samples: Samples, recipe: Recipe, seed: int, run: Mapping[str, Any], loop: Loop
    ) -> None:
        self.model, self.samples, self.recipe, self.seed, self.run, self.loop = model, samples, recipe, seed, run, loop
        try:
            self.optimizer = create_optimizer_v2(
                model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
            )
        except (ValueError, AssertionError, TypeError) as error:
            raise UserError(f"--opt '{recipe.opt}': {first_line(error)}") from error
        self.schedule = MultiStepLRScheduler(
            self.optimizer,
            # Steps are counted from 1 here, and timm looks one ahead.
            decay_t=[round(fraction * recipe.steps) + 2 for fraction in recipe.decay_at],
            decay_rate=recipe.decay_rate,
            warmup_t=recipe.warmup_steps,
            warmup_lr_init=0.0,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.half = getattr(torch, loop.amp_dtype) if loop.amp_dtype else torch.float32
        self.scaler = torch.amp.GradScaler(loop.device.type, enabled=self.half is torch.float16)
        self.step = 0
        self.saved = 0

    @property
    def checkpoint(self) -> Path:
        """The run's last checkpoint."""
        return self.loop.output / LAST

    def resume(self, path: Path | None = None) -> None:
        """Go on from a checkpoint, by default the run's own.

        Raises:
            UserError: it is missing, damaged, or of another run.
        """
        path = path or self.checkpoint
        state = read_state(path, self.loop.device)
        before = {key: value for key, value in state.items() if key not in CONTENT}
        here = dict(self.run)
        if "categories" in before:  # of a version that noted their number and less of the rest
            before["category"] = before.pop("categories")
            here = {key: here[key] for key in before if key in here} | {"category": len(here["category"])}
        check_run(path, _flat(before), _flat(here))
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = self.saved = state["step"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} does not fit this network: {first_line(error)}; give another --output") from error

    def save(self) -> None:
        """Write the checkpoint; the first process alone does.

        Raises:
            Diverged: the weights are no numbers any more.
            UserError: it cannot be written; the one before is whole.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise Diverged(f"the weights are no numbers after step {self.step}; {self._last_good()}")
        if not self.loop.process:
            state = {
                **self.run,
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            write_state(self.checkpoint, state, f"{self._last_good()}: make room, then --resume")
        self.saved = self.step

    def finish(self, every: int = 0, evaluate: Callable[[int], object] | None = None) -> bool:
        """Train to the last step.

        Args:
            every: steps between evaluations; 0 for none.
            evaluate: called with the step; may leave the model in another mode.

        Returns:
            Whether it was finished; False if SIGTERM stopped it, with a checkpoint written.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        loop, recipe = self.loop, self.recipe
        network: nn.Module = self.model
        if loop.processes > 1:
            devices = [loop.device.index] if loop.device.type == "cuda" else None
            network = DistributedDataParallel(self.model, device_ids=devices)
        batches = self._batches()
        bar = steps_left(self.step, recipe.steps, loop.progress)
        with StopSignal() as stop:
            for step in bar:
                self.schedule.step_update(step + 1)  # counted from 1, so the warm-up does not begin with 0
                self._set_mode(network, step)
                torch.manual_seed((self.seed * 1_000_003 + step) * loop.processes + loop.process)
                losses = self._step(network, batches)
                total, stopping = self._agree(sum(losses.values()), stop.requested)
                if not math.isfinite(total):
                    raise Diverged(f"the loss is {total} at step {step + 1}; {self._last_good()}")
                self.step = step + 1
                bar.set_postfix(loss=f"{total:.3f}")
                if self.step % loop.log_steps == 0 and not loop.process:
                    self._log(losses)
                if stopping or self.step % loop.checkpoint_steps == 0 or self.step == recipe.steps:
                    self.save()
                if stopping and self.step < recipe.steps:
                    return False
                if evaluate and every and self.step % every == 0:
                    self.share_statistics()
                    evaluate(self.step)
        self.share_statistics()
        return True

    def share_statistics(self) -> None:
        """Give every process the first one's batch norm statistics, which are those that are saved."""
        if self.loop.processes > 1:
            for statistics in self.model.buffers():
                torch.distributed.broadcast(statistics, 0)

    def _set_mode(self, network: nn.Module, step: int) -> None:
        network.train()
        fraction = self.recipe.fix_norm_at
        if fraction is not None and step >= fraction * self.recipe.steps:
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _step(self, network: nn.Module, batches: Iterator[Any]) -> dict[str, float]:
        """Gradients of the step's passes, then the update unless they are no numbers; the mean losses."""
        sums: dict[str, Tensor] = {}
        for _ in range(self.loop.accumulate):
            images, targets = next(batches)
            images = [image.to(self.loop.device, non_blocking=True) for image in images]
            targets = [{key: value.to(self.loop.device) for key, value in target.items()} for target in targets]
            with torch.autocast(self.loop.device.type, dtype=self.half, enabled=self.half is not torch.float32):
                losses = network(images, targets)
            loss = torch.stack(list(losses.values())).sum() / self.loop.accumulate
            self.scaler.scale(loss).backward()
            for key, value in losses.items():
                sums[key] = sums.get(key, torch.zeros((), device=value.device)) + value.detach().float()
        if all(bool(value.isfinite()) for value in sums.values()):
            if self.recipe.clip_grad:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), self.recipe.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return {key: float(value) / self.loop.accumulate for key, value in sums.items()}

    def _agree(self, total: float, stopping: bool) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any of them is to stop: all must do the same."""
        if self.loop.processes == 1:
            return total, stopping
        values = torch.tensor([total, float(stopping)], device=self.loop.device)
        torch.distributed.all_reduce(values)
        return float(values[0]) / self.loop.processes, bool(values[1] > 0)

    def _last_good(self) -> str:
        return f"the last good checkpoint: {f'step {self.saved} in {self.checkpoint}' if self.saved else 'none yet'}"

    def _batches(self) -> Iterator[Any]:
        loop, recipe = self.loop, self.recipe
        numbers = Numbers(self.step, recipe.steps, recipe.batch_size, loop.process, loop.processes)
        loader = DataLoader(
            self.samples,
            batch_size=recipe.batch_size // (loop.processes * loop.accumulate),
            sampler=numbers,
            num_workers=loop.workers,
            collate_fn=collate,
            pin_memory=loop.device.type == "cuda",
        )
        return iter(loader)

    def _log(self, losses: Mapping[str, float]) -> None:
        """Append a row; steps that are run again replace what followed."""
        path = self.loop.output / LOG
        row = {"step": self.step, "lr": f"{self.optimizer.param_groups[0]['lr']:.6g}"}
        row |= {key: f"{value:.5f}" for key, value in losses.items()}
        before = [old for old in read_rows(path) if int(old["step"]) < self.step] if path.exists() else []
        with writing("--output", self.loop.output, "folder"):
            write_rows(path, [*before, row])


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, an entry for each part, for what differs to be told alone: ``category 7``, ``recipe lr``."""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= {f"{key} {part}": one for part, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat
