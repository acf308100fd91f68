"""Passes as CUDA graphs; all but the refusal for a GPU."""

import gc

import pytest
import torch
from torch import nn

from lambdaresnet_zoo import cli
from lambdaresnet_zoo.tasks.benchmark.graphs import captured

on_cuda = pytest.mark.skipif("not torch.cuda.is_available()", reason="for a GPU")


@on_cuda
def test_a_replay_is_the_pass_and_holds_what_it_reads():
    device = torch.device("cuda")
    total = torch.zeros(4, device=device)

    def build():
        torch.manual_seed(0)
        layer = nn.Linear(8, 4).to(device)
        x = torch.randn(4, 8, device=device)
        with torch.no_grad():
            wanted = layer(x).sum(0)

        def work():
            with torch.no_grad():
                total.copy_(layer(x).sum(0))

        return captured(work, device), wanted

    replay, wanted = build()
    gc.collect()
    torch.cuda.empty_cache()
    total.zero_()
    replay()
    torch.testing.assert_close(total, wanted)


@on_cuda
def test_what_waits_for_the_gpu_cannot_be_recorded():
    x = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError):
        captured(lambda: x.item(), torch.device("cuda"))


def test_a_cpu_has_no_graphs(capsys):
    assert cli.main(["benchmark", "layer", "--device", "cpu", "--cuda-graphs", "--quick"]) == 2
    assert "--cuda-graphs is for a GPU, and the device is cpu" in capsys.readouterr().err
