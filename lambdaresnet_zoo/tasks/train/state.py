"""What training changes, and its checkpoints."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ...errors import UserError
from ..checkpoints import LAST, Diverged, check_run, read_state, write_state
from .data import TrainData
from .model import Freezing
from .options import TrainOptions
from .plan import Plan, make_optimizer, make_schedule
from .records import BEST, Place, Progress
from .samples import TrainBatch
from .transforms import OnDevice
from .wrapping import States, shard, synchronise_norms

__all__ = ["NEVER", "TrainState"]

BEFORE = f".{LAST}.before"
"""The checkpoint before that of an epoch's end, in the folder of the run, until the epoch has been evaluated."""
NEVER = 2**62  # a step that no run comes to


class TrainState:
    """A network in training, with all that a checkpoint holds.

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
        evaluated = data.validation is not None
        self.schedule, _ = make_schedule(self.optimizer, options, plan.steps_per_epoch, evaluated)
        self.half = getattr(torch, options.half) if options.half else torch.float32
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.half is torch.float16)
        self.progress = Progress(evaluated=True)
        self.saved = 0
        self._fresh = False
        """Whether the last checkpoint is the first one of the run."""
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
        before, here = state.get("run", {}), self.run_identity()
        if before.get("batch") not in (None, here["batch"]):
            raise UserError(
                f"{path} is of a run with {before['batch']} images in an update, here there are {here['batch']}: start "
                "as many processes as it had, or set --batch-size and --grad-accum-steps so that their product with "
                f"the processes is {before['batch']}"
            )
        check_run(path, before, here)
        self._check_classes(path, state.get("class_names"))
        self.states.set_model(self.model, state["model"])
        if self.ema:
            self.states.set_model(self.ema.module, state["ema"])
        self.states.set_optimizer(self.model, self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.options.sched == "plateau":
            self.schedule.lr_scheduler.load_state_dict(state["schedule"])  # timm's own leaves its counters out
            self.schedule.restore_lr = state.get("restore_lr")
        self.progress = Progress(**state["progress"])
        if path != self.checkpoint and not (path.parent / BEST).exists():
            self.progress.best = {}
        self.bad = dict(state["bad"])
        self.sums.copy_(state["sums"])
        self.saved = self.progress.step

    def _check_classes(self, path: Path, before: list[str] | None) -> None:
        """Whether a checkpoint is of classes of these names; one of a former version does not tell."""
        pairs = enumerate(zip(before or self.data.classes, self.data.classes, strict=True))
        other = next(((number, *names) for number, names in pairs if len(set(names)) > 1), None)
        if other:
            raise UserError(
                f"{path} is of other classes: number {other[0]} is '{other[1]}' there, '{other[2]}' here; name the "
                "classes as they were, or give another --output"
            )

    def save(self) -> None:
        """Write the checkpoint; the first process alone writes, and where there is FSDP2 all take part.

        Raises:
            Diverged: the weights are no numbers any more.
            UserError: it cannot be written; the one before is whole.
        """
        finite = torch.stack([value.isfinite().all() for value in _locals(self.model)]).all().int()
        if self.place.processes > 1:  # each has a part of the weights, or batch norm statistics of its own
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        if not finite:
            raise self.diverged(f"the weights are no numbers after step {self.progress.step}")
        progress = self.progress
        state = {
            "run": self.run_identity(),
            "class_names": list(self.data.classes),
            "progress": vars(progress).copy(),
            "model": self.states.model(self.model),
            "optimizer": self.states.optimizer(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.lr_scheduler.state_dict() if self.options.sched == "plateau" else {},
            "restore_lr": getattr(self.schedule, "restore_lr", None),  # without the noise that plateau was given
            "sums": self.sums,
            "bad": dict(self.bad),
        }
        if self.ema:
            state["ema"] = self.states.model(self.ema.module)
        if self.place.is_first:
            self.write(self.checkpoint, state)
        self.saved = progress.step

    def keep_before(self) -> None:
        """Have the last checkpoint beside the next one, of which nobody knows yet whether it is good.

        Raises:
            UserError: it cannot be written.
        """
        before = self.place.output / BEFORE
        self._fresh = not self.saved
        if not self.place.is_first:
            return
        before.unlink(missing_ok=True)
        if not self.saved:
            return
        try:
            os.link(self.checkpoint, before)
        except OSError:  # a disk without links
            self.write(before, read_state(self.checkpoint))

    def forget_before(self) -> None:
        """Let go of what ``keep_before`` kept: the checkpoint after it is good."""
        if self.place.is_first:
            (self.place.output / BEFORE).unlink(missing_ok=True)

    def taken_back(self) -> Diverged:
        """The end of a run whose evaluation shows the last checkpoint to be bad; the one before is put back."""
        before = self.place.output / BEFORE
        self.saved = 0
        if self.place.is_first and before.exists():
            os.replace(before, self.checkpoint)
            self.saved = read_state(self.checkpoint)["progress"]["step"]
        elif self.place.is_first and self._fresh:
            self.checkpoint.unlink(missing_ok=True)
        return self.diverged(
            f"the evaluation's loss is no number after step {self.progress.step}, learning rate {self.rate:.6g}"
        )

    def write(self, path: Path, state: dict[str, Any]) -> None:
        """Write a state, whole.

        Raises:
            UserError: it cannot be written.
        """
        write_state(path, state, f"{self._last_good()}: make room, then --resume")

    def diverged(self, what: str) -> Diverged:
        """The end of a run whose figures are no numbers, with what to do."""
        half = ", or with --amp-dtype bfloat16" if self.options.half == "float16" else ""
        again = f"begin another --output with a lower --lr, or with --clip-grad 1{half}"
        return Diverged(f"{what}; {self._last_good()}; {again}")

    def _last_good(self) -> str:
        return f"the last good checkpoint: {f'step {self.saved} in {self.checkpoint}' if self.saved else 'none yet'}"


def _locals(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of a state, of those that are shared out this process's part."""
    for tensor in model.state_dict().values():
        value: Any = tensor.detach()
        yield value.to_local() if hasattr(value, "to_local") else value
