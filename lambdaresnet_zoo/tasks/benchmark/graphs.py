"""Passes as CUDA graphs: what the GPU does, without what Python takes to ask for it."""

from collections.abc import Callable

import torch

__all__ = ["captured"]

WARM_PASSES = 3


def captured(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A pass recorded once, to be replayed with one launch; its tensors stay where they are.

    Args:
        work: a pass that has run before, and neither waits for the GPU nor asks it anything.
        device: where it runs.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # what libraries set up at first must not be recorded
        for _ in range(WARM_PASSES):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(keep: object = work) -> None:  # what the pass holds is what the graph reads
        graph.replay()

    return replay
