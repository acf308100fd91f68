"""What happens to a batch on the device is timm's: normalisation, mixing, losses; and what a transform draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode

from lambdaresnet_zoo.tasks.train.options import TrainOptions
from lambdaresnet_zoo.tasks.train.samples import TrainCollate, seed_everything
from lambdaresnet_zoo.tasks.train.transforms import OnDevice, build_transform

CONFIG = {"input_size": (3, 16, 16), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1), "interpolation": "bicubic"}
CPU = torch.device("cpu")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, 3, 1, 2, 3, 0])


def normalised(images):
    mean, std = (torch.tensor(CONFIG[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixing_is_timms(batch, mode, options):
    images, target = batch
    np.random.seed(5)
    own = OnDevice(TrainOptions(**options, mixup_mode=mode, smoothing=0.2), CONFIG, 4, CPU)
    mixed, shares = own(images, target, epoch=0)
    np.random.seed(5)
    arguments = {"mixup_alpha": options.get("mixup", 0.0), "cutmix_alpha": options.get("cutmix", 0.0)}
    timms = Mixup(**arguments, mode=mode, label_smoothing=0.2, num_classes=4)
    expected, wanted = timms(normalised(images), target)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares, wanted)
    assert isinstance(own.loss, SoftTargetCrossEntropy)


class WithoutProducts(TorchDispatchMode):
    """No product of matrices, which on a GPU may be in TF32."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function._overloadpacket not in (torch.ops.aten.mm, torch.ops.aten.matmul, torch.ops.aten.addmm)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("soft", [False, True])
def test_mixed_targets_are_exact(batch, mode, soft):
    """Without smoothing, they are timm's to the bit."""
    images, target = batch
    dense = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) if soft else target
    own = OnDevice(TrainOptions(mixup=0.4, mixup_mode=mode, smoothing=0.0), CONFIG, 4, CPU, soft)
    np.random.seed(5)
    with WithoutProducts():
        mixed = own(images, dense, epoch=0)[1]
    np.random.seed(5)
    timms = Mixup(0.4, mode=mode, label_smoothing=0.0, num_classes=4, multi_label=soft)
    assert torch.equal(mixed, timms(normalised(images), dense)[1])


def test_mixing_ends_with_an_epoch(batch):
    images, target = batch
    own = OnDevice(TrainOptions(mixup=0.4, mixup_off_epoch=3), CONFIG, 4, CPU)
    assert not torch.equal(own(images, target, epoch=2)[1].max(1).values, torch.full((6,), 0.925))
    mixed, shares = own(images, target, epoch=3)
    torch.testing.assert_close(mixed, normalised(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(shares.argmax(1), target) and torch.allclose(shares.max(1).values, torch.tensor(0.925))


def test_soft_labels_are_smoothed_as_hard_ones(batch):
    images, target = batch
    own = OnDevice(TrainOptions(smoothing=0.2), CONFIG, 4, CPU, soft=True)
    dense = torch.nn.functional.one_hot(target, 4).float()
    logits = torch.randn(6, 4)
    loss = own.loss(logits, own(images, dense, epoch=0)[1])
    torch.testing.assert_close(loss, LabelSmoothingCrossEntropy(0.2)(logits, target))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"smoothing": 0.0}, torch.nn.CrossEntropyLoss),
        ({"smoothing": 0.1}, LabelSmoothingCrossEntropy),
        ({"bce_loss": True}, BinaryCrossEntropy),
        ({"bce_loss": True, "mixup": 0.1}, BinaryCrossEntropy),
    ],
)
def test_losses(options, kind):
    own = OnDevice(TrainOptions(**options), CONFIG, 4, CPU)
    assert type(own.loss) is kind and getattr(own.loss, "smoothing", 0.1) == (0.0 if "mixup" in options else 0.1)


def test_erasing_fills_a_part(batch):
    images, target = batch
    torch.manual_seed(0)
    erased, _ = OnDevice(TrainOptions(reprob=1.0, remode="const"), CONFIG, 4, CPU)(images, target, epoch=0)
    share = (erased == 0).float().mean((1, 2, 3))
    assert ((share > 0.01) & (share < 0.5)).all()


def test_padded_crops_are_windows_of_the_padded_image():
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3), dtype=np.uint8)
    options = TrainOptions(train_crop_mode="pad", train_crop_padding=2, hflip=0.0, color_jitter=0.0)
    transform = build_transform(options, CONFIG)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[top : top + 16, left : left + 16].tobytes() for top in range(5) for left in range(5)}
    seen = set()
    for seed in range(200):
        seed_everything(seed)
        seen.add(transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy().tobytes())
    assert seen == windows
    assert transform(Image.fromarray(pixels).resize((40, 20))).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "options", [{"aa": "rand-m9-n2-mstd0.5"}, {"color_jitter": 0.4, "vflip": 0.5}, {"no_aug": True}]
)
def test_a_seed_gives_a_sample(options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    transform = build_transform(TrainOptions(**options), CONFIG)

    def draw(seed):
        seed_everything(seed)
        return transform(image)

    assert draw(1).dtype == torch.uint8 and draw(1).shape == (3, 16, 16)
    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(2)) == ("no_aug" in options)


def test_hard_labels_become_soft_beside_soft_ones():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    soft = torch.tensor([0.1, 0.2, 0.7])
    batch = TrainCollate(3)([(image, 1, [], ""), (image, soft, [("a.png", "damaged")], "")])
    assert torch.equal(batch.target, torch.stack([torch.tensor([0.0, 1.0, 0.0]), soft]))
    assert batch.problems == [("a.png", "damaged")] and not batch.broken
    assert TrainCollate(3)([(image, 1, [], ""), (image, 2, [], "")]).target.tolist() == [1, 2]
