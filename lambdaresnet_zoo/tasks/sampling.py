"""The order in which training takes its samples, the same for any number of processes and workers."""

from collections.abc import Iterator

from torch.utils.data import Sampler

__all__ = ["Numbers"]


class Numbers(Sampler[int]):
    """Numbers of the samples that one of several processes takes, from a step of the run on.

    Step s has the samples s·B to (s + 1)·B - 1, of which process p of P takes the p-th of P equal parts.
    """

    def __init__(self, first: int, last: int, batch_size: int, process: int, processes: int) -> None:
        self.steps, self.batch_size, self.process, self.processes = range(first, last), batch_size, process, processes

    def __iter__(self) -> Iterator[int]:
        part = self.batch_size // self.processes
        for step in self.steps:
            start = step * self.batch_size + self.process * part
            yield from range(start, start + part)

    def __len__(self) -> int:
        return len(self.steps) * (self.batch_size // self.processes)
