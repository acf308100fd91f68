"""Peak memory of one pass, beside what can be counted by hand and what the kernel counts."""

import subprocess
import sys

import pytest
import torch

from lambdaresnet_zoo.tasks.benchmark.memory import OutOfMemory, memory_limit, peak_memory

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_is_what_is_held_at_once():
    a = torch.randn(512, 512)  # 1 MiB, held before

    def work():
        b = a @ a  # 1
        c = b + 1  # 2
        del b  # 1
        d = c * 2  # 2
        e = d.exp()  # 3
        del c, d, e
        torch.empty(512, 512)  # 1

    for _ in range(2):  # whatever was freed before and may be taken again
        assert peak_memory(work, CPU) == 3 * MIB


def test_a_backward_pass_by_hand():
    """A product [256, 1024] x [1024, 512] and a sigmoid, which keeps its output."""
    x = torch.randn(256, 1024, requires_grad=True)
    weight = torch.randn(1024, 512, requires_grad=True)
    gradient = torch.randn(256, 512)

    def work():
        (x @ weight).sigmoid().backward(gradient)

    # Held while the gradients of x, 1, and of the weight, 2, are made: the output and that of the product, 0.5 each.
    assert peak_memory(work, CPU) == 4 * MIB


def test_it_leaves_stderr_alone(capfd):
    peak_memory(lambda: torch.ones(3), CPU)
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


FRESH = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from lambdaresnet_zoo.tasks.benchmark.memory import peak_memory
a = torch.ones(40 * 2**20 // 4)  # 40 MiB
small = lambda: torch.empty(10).add(1)
def work():
    b = a + 1; c = b.exp(); d = c * b; del b, c; e = d + a; return None
peak_memory(small, a.device); work_ = work
rss = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024
now = int(open('/proc/self/statm').read().split()[1]) * 4096
open('/proc/self/clear_refs', 'w').write('5')
counted = peak_memory(work, a.device)
print(counted, rss() - now)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_kernel_counts_the_same():
    from lambdaresnet_zoo.weights.documents import ROOT

    run = subprocess.run([sys.executable, "-c", FRESH.format(root=str(ROOT))], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    counted, resident = map(int, run.stdout.split())
    assert counted == 120 * MIB
    assert abs(resident - counted) < 16 * MIB  # the profiler's own, and pages that were there before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_pass_that_wants_too_much():
    with pytest.raises(OutOfMemory), memory_limit(0.25, CPU):
        torch.ones(1024, 1024, 1024)
    with memory_limit(0.25, CPU):
        torch.ones(1024, 1024)
    torch.empty(256, 1024, 1024)  # the limit is gone


def test_other_errors_pass_the_limit():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_limit(8, CPU):
        torch.ones(2, 3) @ torch.ones(2, 3)
