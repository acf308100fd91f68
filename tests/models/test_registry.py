"""The package's slice of timm's registry: names, parameters, frozen keys, and what importing costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from models.state_dicts import layouts

import lambdaresnet_zoo

MILLIONS = {
    "lambdaresnet50": 18.96,
    "lambdaresnet101": 36.87,
    "lambdaresnet152": 51.40,
    "lambdaresnet200": 57.99,
    "lambdaresnet270": 81.37,
    "lambdaresnet350": 105.48,
    "lambdaresnet420": 124.44,
    "lambdaresnet101_c4": 25.98,
    "lambdaresnet152_c4": 35.08,
    "lambdaresnet200_c4": 41.67,
    "lambdaresnet50_cccc": 25.56,
    "lambdaresnet50_lccc": 25.49,
    "lambdaresnet50_llcc": 24.99,
    "lambdaresnet50_lllc": 21.73,
    "lambdaresnet50_llll": 15.00,
    "lambdaresnet50_clll": 15.06,
    "lambdaresnet50_ccll": 15.56,
    "lambdaresnet50_cccl": 18.83,
    "lambdaresnet50_llll_u4": 16.04,
    "lambdaresnet26t": 10.96,
    "lambdaresnet26rpt_256": 10.99,
    "lambdaresnet50ts": 21.54,
    "lambda_mobilenetv2_100": 3.21,
    "lambdaresnet50_dli14": 14.995,
    "lambdaresnet152_leaderj1001_v0": 32.80,
    "lambdaresnet200_leaderj1001_v0": 35.29,
}
"""As published, or computed from the paper's architecture where it prints none."""

OTHERS = {
    "lambdaresnet50_c4",
    "lambdaresnet270_c4",
    "lambdaresnet50_llll_k8",
    "lambdaresnet50_llll_shared",
    "lambdaresnet50_llll_r7",
    "lambdaresnet32px",
    "lambdaresnet32px_conv",
    "test_lambdaresnet",
    *(f"lambdaresnet{depth}_dli14" for depth in (26, 38, 101, 152)),
    *(f"lambdaresnet{depth}_leaderj1001" for depth in (18, 50, 152, 200, 270, 350, 420)),
    *(f"lambdaresnet{depth}_leaderj1001_v0" for depth in (18, 50, 270, 350, 420)),
}


def count(name: str) -> float:
    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) / 1e6


def test_lists_its_own_models_and_no_others():
    assert set(lambdaresnet_zoo.list_models()) == MILLIONS.keys() | OTHERS
    assert set(lambdaresnet_zoo.list_models()) < set(timm.list_models())


def test_lists_those_with_weights():
    assert lambdaresnet_zoo.list_models(pretrained=True) == [
        "lambdaresnet26rpt_256",
        "lambdaresnet26t",
        "lambdaresnet32px",
        "lambdaresnet50ts",
    ]


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_the_papers(name):
    assert count(name) == pytest.approx(MILLIONS[name], abs=0.01)


def test_variants_differ_from_llll_by_what_they_change():
    llll = count("lambdaresnet50_llll")
    # One 23x23 table of depth 16 a layer; 16 layers in 4 stages.
    assert llll - count("lambdaresnet50_llll_shared") == pytest.approx(12 * 16 * 23**2 / 1e6, abs=1e-6)
    assert llll - count("lambdaresnet50_llll_r7") == pytest.approx(16 * 16 * (23**2 - 7**2) / 1e6, abs=1e-6)
    widths = 3 * [64] + 4 * [128] + 6 * [256] + 3 * [512]
    halved = sum(8 * (5 * width + 4 * 2 + 23**2) for width in widths)  # queries and keys, their norm, the table
    assert llll - count("lambdaresnet50_llll_k8") == pytest.approx(halved / 1e6, abs=1e-6)


def test_no_name_is_timms():
    """In a process where this package was never imported, and without a warning where it is."""
    code = "import timm, json; print(json.dumps(timm.list_models()))"
    timms = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not set(timms) & set(lambdaresnet_zoo.list_models())
    modules = {timm.models.model_entrypoint(name).__module__.split(".")[-1] for name in timms}
    own = {timm.models.model_entrypoint(name).__module__.split(".")[-1] for name in lambdaresnet_zoo.list_models()}
    assert not modules & own


def test_state_dict_keys_and_shapes_are_frozen():
    """Weights that users have saved must load: regenerate with `python tests/models/state_dicts.py` if on purpose."""
    frozen = json.loads(Path(__file__).with_name("state_dicts.json").read_text())
    assert layouts() == frozen


def test_default_sizes_are_the_papers():
    sizes = {50: 160, 101: 192, 152: 256, 200: 256, 270: 256, 350: 320, 420: 320}
    for depth, size in sizes.items():
        cfg = timm.models.get_pretrained_cfg(f"lambdaresnet{depth}")
        assert cfg.input_size == (3, size, size)
        assert cfg.pool_size == (size // 32, size // 32)


def test_rates_of_a_recipe_are_not_defaults():
    model = timm.create_model("lambdaresnet50", device="meta")
    assert model.drop_rate == 0
    assert "drop_prob" not in str(model)


def test_lambda_layers_are_where_the_paper_puts_them():
    from lambdaresnet_zoo.layers import LambdaLayer

    model = timm.create_model("lambdaresnet101", device="meta")
    kinds = [[isinstance(getattr(block, "self_attn", None), LambdaLayer) for block in stage] for stage in model.stages]
    assert not any(kinds[0] + kinds[1])
    assert [i for i, is_lambda in enumerate(kinds[2], start=1) if is_lambda] == [6, 12, 18]
    assert all(kinds[3])
    squeezed = [name for name, module in model.named_modules() if type(module).__name__ == "SEModule"]
    assert len(squeezed) == 3 + 4
    assert all(name.startswith(("stages.0", "stages.1")) for name in squeezed)
    scopes = {layer.scope for layer in timm.create_model("lambdaresnet270_c4", device="meta").modules()
              if isinstance(layer, LambdaLayer)}  # fmt: skip
    assert scopes == {7}


IMPORT = """
import sys, time, socket
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = refuse
import torch, timm
start = time.process_time()
import lambdaresnet_zoo
seconds = time.process_time() - start
assert not torch.cuda.is_initialized()
sys.stderr.write(str(seconds))
"""


def test_importing_is_silent_and_quick():
    """At most 0.3 s beyond timm, in processor time; the best of three, for machines that are shared."""
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", IMPORT], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""
        seconds.append(float(run.stderr))  # anything else that was printed is no number
    assert min(seconds) < 0.3
