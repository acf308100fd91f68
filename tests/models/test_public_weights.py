"""The weights of timm's own repositories in our networks: what timm's model gives with them, ours gives.

Both are loaded from the same hub on the loopback interface; the weights are random.
"""

import copy
import re

import pytest
import timm
import torch
from models.timm_models import PAIRS, perturbed
from safetensors.torch import save

from lambdaresnet_zoo.models.lambdaresnet_public import from_timm

TAGS = {"lambdaresnet26t": "c1_in1k", "lambdaresnet26rpt_256": "c1_in1k", "lambdaresnet50ts": "a1h_in1k"}
GLOBAL = "lambdaresnet26rpt_256"


@pytest.fixture(params=PAIRS, scope="module")
def weights(request):
    """A name, and a file as timm's repository has it."""
    return request.param, save(perturbed(request.param).state_dict())


@pytest.fixture
def served(weights, hub):
    """A name of ours, whose repository is on the hub."""
    name, content = weights
    hub.add(f"timm/{PAIRS[name]}.{TAGS[name]}", {"model.safetensors": content})
    return name


def both(name, **kwargs):
    """Ours by the tag and timm's, each from the hub."""
    tag = TAGS[name]
    ours = timm.create_model(f"{name}.{tag}", pretrained=True, **kwargs)
    return ours.eval(), timm.create_model(f"{PAIRS[name]}.{tag}", pretrained=True, **kwargs).eval()


def distance(ours, theirs, size, channels=3):
    """In float64: rounding differs from one order of contraction to another, and deep networks amplify it."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    ours, theirs = (copy.deepcopy(model).double() for model in (ours, theirs))
    with torch.inference_mode():
        pairs = ((ours(x), theirs(x)),) if isinstance(ours(x), torch.Tensor) else zip(ours(x), theirs(x), strict=True)
        for mine, other in pairs:
            assert other.abs().max() > 0.1
            yield (mine - other).abs().max()


def assert_tensors_are_equal(ours, theirs, but=()):
    mine, other = ours.state_dict(), from_timm(theirs.state_dict())
    assert mine.keys() == other.keys()
    assert {key for key in mine if not torch.equal(mine[key], other[key])} == set(but)


def test_outputs_are_timms(served):
    ours, theirs = both(served)
    assert_tensors_are_equal(ours, theirs)
    for size in (256,) if served == GLOBAL else (256, 320):
        assert max(distance(ours, theirs, size)) <= 1e-8


def test_the_name_alone_has_these_weights(served):
    tag = TAGS[served]
    ours = timm.create_model(served, pretrained=True)
    assert ours.pretrained_cfg["tag"] == tag
    assert ours.pretrained_cfg["hf_hub_id"] == f"timm/{PAIRS[served]}.{tag}"
    assert_tensors_are_equal(ours, timm.create_model(PAIRS[served], pretrained=True))


def test_preprocessing_is_timms(served):
    ours, theirs = (timm.get_pretrained_cfg(f"{name}.{TAGS[served]}") for name in (served, PAIRS[served]))
    for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes", "license"):
        assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.slow
def test_other_heads_and_channels(served):
    ours, theirs = both(served, num_classes=5)
    assert_tensors_are_equal(ours, theirs, but=["head.fc.weight"])  # both biases are zero
    assert ours(torch.randn(1, 3, 256, 256)).shape == (1, 5)
    ours, theirs = both(served, num_classes=0)
    assert_tensors_are_equal(ours, theirs)
    ours, theirs = both(served, in_chans=1)
    assert_tensors_are_equal(ours, theirs)
    assert max(distance(ours, theirs, 256, channels=1)) <= 1e-8


def test_features(served):
    ours, theirs = both(served, features_only=True)
    assert_tensors_are_equal(ours, theirs)
    distances = list(distance(ours, theirs, 256))
    assert len(distances) == 5 and max(distances) <= 1e-8


def test_a_folder_under_our_names_loads(served, tmp_path):
    ours, _ = both(served)
    timm.models.save_for_hf(ours, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_tensors_are_equal(again, ours)
    again = timm.create_model(served, pretrained=True, pretrained_cfg_overlay={"state_dict": ours.state_dict()})
    assert_tensors_are_equal(again, ours)


@pytest.mark.parametrize("weights", [GLOBAL], indirect=True)
@pytest.mark.parametrize("size", [320, (192, 224)])
class TestOtherSizesOfTheGlobalNetwork:
    @pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"features_only": True}])
    def test_tables_are_resampled(self, served, size, options):
        """As when the network is loaded at its own size, and set to the other then."""
        ours = timm.create_model(f"{served}.c1_in1k", pretrained=True, img_size=size, **options)
        other = timm.create_model(f"{served}.c1_in1k", pretrained=True)
        other.set_input_size(size)
        own = {re.sub("^(stem|stages)_", r"\1.", key): value for key, value in ours.state_dict().items()}
        wanted = other.state_dict()
        tables = [value for key, value in own.items() if key.endswith("position.table")]
        assert tables and not {tuple(table.shape[2:]) for table in tables} & {(31, 31), (15, 15)}
        head = {"head.fc.weight", "head.fc.bias"}
        assert own.keys() | head == wanted.keys()
        different = {key for key, value in own.items() if not torch.equal(value, wanted[key])}
        assert different == (head if "num_classes" in options else set())

    def test_a_saved_model_takes_another_size(self, served, size, tmp_path):
        saved = timm.create_model(served, pretrained=True)
        saved.set_input_size(288)
        timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
        ours = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=size)
        saved.set_input_size(size)
        assert_tensors_are_equal(ours, saved)


def test_weights_that_do_not_fit_are_refused(served):
    state = from_timm(perturbed(served).state_dict())
    tables = [key for key in state if key.endswith("position.table")]
    state[tables[0]] = state[tables[0]][:1]
    with pytest.raises(RuntimeError, match=r"position\.table"):
        timm.create_model(served, pretrained=True, num_classes=5, pretrained_cfg_overlay={"state_dict": state})
