"""The detectors: equal to torchvision's own, on any backbone, and refusing what cannot be one."""

import pytest
import timm
import torch
import torchvision
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet

from lambdaresnet_zoo.detection import DETECTORS, complexity, faster_rcnn, mask_rcnn, retinanet

TINY = "test_lambdaresnet"
NARROW = {
    "channels": 16, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}  # fmt: skip
KINDS = [("mask_rcnn", MaskRCNN), ("faster_rcnn", FasterRCNN), ("retinanet", RetinaNet)]


def images():
    torch.manual_seed(0)
    return [torch.rand(3, 100, 140), torch.rand(3, 120, 90)]


def targets(masks=True):
    boxes = torch.tensor([[10.0, 10, 60, 70], [30.0, 20, 80, 90]])
    one = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    return [
        {**one, "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8)} if masks else dict(one)
        for image in images()
    ]


@pytest.mark.slow
def test_equal_to_torchvisions_own():
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    for module in theirs.modules():  # statistics that a trained network would have, and scores worth comparing
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight, std=0.05)
    ours = mask_rcnn("resnet50", 5, image_size=(800, 1333))
    ours.load_state_dict(theirs.state_dict())  # the same names
    # torchvision's sizes, which are too large for a test
    for model in (theirs.eval(), ours.eval()):
        model.transform.min_size, model.transform.max_size = (160,), 224
    with torch.no_grad():
        expected, found = theirs(images()), ours(images())
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) > 5
        assert set(one) == set(other) == {"boxes", "labels", "scores", "masks"}
        assert torch.equal(one["labels"], other["labels"])
        for key in ("boxes", "scores", "masks"):
            torch.testing.assert_close(other[key], one[key], rtol=0, atol=1e-4)
    assert ours.transform.image_mean == theirs.transform.image_mean or (
        list(ours.transform.image_mean) == list(theirs.transform.image_mean)
    )


@pytest.mark.parametrize(("kind", "own"), KINDS)
def test_each_learns_and_detects(kind, own):
    torch.manual_seed(0)
    model = DETECTORS[kind](TINY, 3, image_size=128, **NARROW)
    assert type(model) is own
    losses = model(images(), targets(kind == "mask_rcnn"))
    sum(losses.values()).backward()
    unreached = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unreached
    with torch.no_grad():
        found = model.eval()(images())
    assert len(found) == 2
    assert ("masks" in found[0]) == (kind == "mask_rcnn")
    for image, output in zip(images(), found, strict=True):
        height, width = image.shape[1:]
        assert output["boxes"].numel() == 0 or output["boxes"].max() <= max(height, width)


def test_the_pyramid_has_strides_4_to_64():
    maps = mask_rcnn(TINY, 3).backbone(torch.zeros(1, 3, 96, 128))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "0": (1, 256, 24, 32),
        "1": (1, 256, 12, 16),
        "2": (1, 256, 6, 8),
        "3": (1, 256, 3, 4),
        "pool": (1, 256, 2, 2),
    }


@pytest.mark.parametrize("name", ["lambdaresnet26rpt_256", "lambda_resnet26rpt_256"])
def test_global_scope_is_refused(name):
    with pytest.raises(ValueError, match=r"global scope.*take a network with local scope, as lambdaresnet26t"):
        mask_rcnn(name)


def test_scope_that_was_made_global_is_refused():
    kwargs = {"img_size": 96, "self_attn_kwargs": {"scope": None, "feat_size": (6, 6)}}
    with pytest.raises(ValueError, match="global scope"):
        mask_rcnn(TINY, backbone_kwargs=kwargs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "unknown model 'nothing'"),
        ("lambdaresnet32px", {}, "has maps at strides .*needs 4, 8, 16, 32"),
        (TINY, {"norm": "group"}, "there are live, frozen, sync"),
        (TINY, {"frozen": ("c6",)}, "it has stem, c2, c3, c4, c5"),
        (TINY, {"anchor_sizes": (8,)}, "1 anchor sizes; the pyramid has 5"),
        (TINY, {"image_size": 16}, "is not a size in pixels"),
        (TINY, {"pretrained_backbone": {"stem": torch.zeros(1)}}, "the weights are not of 'test_lambdaresnet'"),
    ],
)
def test_wrong_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn(name, **options)


def test_weights_of_a_classifier_become_the_body():
    torch.manual_seed(1)
    network = timm.create_model(TINY, num_classes=7).eval()
    model = faster_rcnn(TINY, 3, pretrained_backbone=network.state_dict())
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(pixels, intermediates_only=True)[-4:]
        found = model.backbone.body.eval()(pixels)
    for one, other in zip(expected[:3], found[:3], strict=True):
        torch.testing.assert_close(other, one)


def test_frozen_stages_and_norms():
    model = retinanet(TINY, 3, frozen=("stem", "c2"))
    trained = {name: parameter.requires_grad for name, parameter in model.backbone.body.named_parameters()}
    assert {name.split(".")[0] for name, needs in trained.items() if not needs} == {
        "stem_conv1",
        "stem_conv2",
        "stages_0",
    }
    fixed = [name for name, module in model.named_modules() if isinstance(module, FrozenBatchNormAct2d)]
    assert fixed and all(name.startswith(("backbone.body.stem", "backbone.body.stages_0")) for name in fixed)

    frozen = mask_rcnn(TINY, 3, norm="frozen")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.backbone.body.modules())
    synced = mask_rcnn(TINY, 3, norm="sync")
    norms = [module for module in synced.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(module, nn.SyncBatchNorm) for module in norms)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = mask_rcnn(TINY, 3, image_size=96, grad_checkpointing=checkpointed, **NARROW)
        torch.manual_seed(1)
        sum(model(images(), targets()).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_complexity_counts_parameters_and_operations():
    model = faster_rcnn(TINY, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = complexity(model, 128)
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    # The two hidden layers of the box head on 1000 regions are most of the heads' operations.
    hidden = 2 * 1000 * (256 * 7 * 7 * 1024 + 1024 * 1024) / 1e9
    assert hidden < found.heads_gflops < 1.2 * hidden
    assert complexity(model, 256).backbone_gflops == pytest.approx(4 * found.backbone_gflops, rel=0.1)
    assert complexity(mask_rcnn(TINY, 3), 128).heads_gflops > 2 * found.heads_gflops
    assert complexity(retinanet(TINY, 3, frozen=("stem",)), 128).trainable < complexity(retinanet(TINY, 3), 128).params
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert "M parameters" in str(found)
