import json
import weakref

import numpy as np
import pytest
import timm
import torch
from command import one_line
from PIL import Image, ImageOps
from safetensors.torch import save_file

from lambdaresnet_zoo.conversion.config import class_names
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks import images as images_module
from lambdaresnet_zoo.tasks.images import find_images, is_turned, open_image
from lambdaresnet_zoo.tasks.loading import label_names
from lambdaresnet_zoo.tasks.predict import load_model, predict
from lambdaresnet_zoo.weights.cards import Card
from lambdaresnet_zoo.weights.folder import write_folder, write_model

NAME = "test_lambdaresnet"


@pytest.fixture
def model(checkpoint):
    return load_model(NAME, checkpoint)


def by_index(result):
    return torch.tensor([row.probability for row in sorted(result.predictions, key=lambda row: row.index)])


def mended(tmp_path, checkpoint, change):
    """A copy of the checkpoint after ``change``, saved by torch."""
    state = timm.models.load_state_dict(str(checkpoint))
    path = tmp_path / "changed.pth"
    changed = change(state)
    torch.save(state if changed is None else changed, path)
    return path


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_are_those_of_an_independent_computation(draw, model, expected, batch_size):
    paths = [draw(f"{seed}.png", seed) for seed in range(3)]
    results = list(predict(paths, model, topk=7, batch_size=batch_size))
    assert [result.path for result in results] == [str(path) for path in paths]
    wanted = [expected(path) for path in paths]
    assert (wanted[0] - wanted[1]).abs().max() > 0.001 and (wanted[1] - wanted[2]).abs().max() > 0.001
    for result, probabilities in zip(results, wanted, strict=True):
        torch.testing.assert_close(by_index(result), probabilities, atol=1e-6, rtol=0)
        shown = [row.probability for row in result.predictions]
        assert shown == sorted(shown, reverse=True)
        assert [row.label for row in result.predictions] == [str(row.index) for row in result.predictions]


def test_eval_mode_without_gradients(draw, model):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    list(predict([draw("a.png")], model))
    assert not model.training and seen == [False]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("limits", [{"topk": 0}, {"batch_size": 0}])
def test_limits_are_checked_at_the_call(model, limits):
    with pytest.raises(ValueError, match="at least 1"):
        predict([], model, **limits)


def test_one_batch_of_images_is_held_at_a_time(model, monkeypatch, pixels):
    """Images are read when their batch comes, and let go after it."""
    opened = []

    def read(path):
        assert sum(image() is not None for image in opened) <= 2
        image = Image.fromarray(pixels(len(opened)))
        opened.append(weakref.ref(image))
        return image

    monkeypatch.setattr("lambdaresnet_zoo.tasks.predict.open_image", read)
    results = predict((f"{number}.png" for number in range(9)), model, batch_size=2)
    next(results)
    assert len(opened) == 2
    assert len(list(results)) == 8 and len(opened) == 9


def test_exif_orientation_is_honoured(tmp_path, pixels, model, expected):
    upright = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert np.array_equal(np.asarray(open_image(path)), pixels())
    (result,) = predict([path], model, topk=7)
    torch.testing.assert_close(by_index(result), expected(upright), atol=1e-6, rtol=0)
    assert (by_index(result) - expected(path)).abs().max() > 0.001  # what ignoring it would give


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("1", "a.png"), ("P", "a.gif"), ("RGBA", "a.png"), ("LA", "a.png"), ("CMYK", "a.tif")],
)
def test_modes_become_rgb(tmp_path, pixels, mode, name):
    image = Image.fromarray(pixels()).convert(mode)
    image.save(tmp_path / name)
    opened = open_image(tmp_path / name)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_warns_of_nothing(tmp_path, pixels, recwarn):
    Image.fromarray(pixels()).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert open_image(tmp_path / "a.png").mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_16_bits_are_scaled_not_clipped(tmp_path, pixels, dtype):
    gray = pixels()[..., 0]
    Image.fromarray(gray.astype(dtype) * 257).save(tmp_path / "a.tif")
    opened = np.asarray(open_image(tmp_path / "a.tif"))
    assert np.array_equal(opened, np.repeat(gray[..., None], 3, axis=2))


def test_fractions_are_scaled_to_the_whole_range(tmp_path, pixels):
    gray = pixels()[..., 0]
    for name, values in (("fractions.tif", gray / 255), ("whole.tif", gray), ("wide.tif", gray * 257.0)):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / name)
        opened = np.asarray(open_image(tmp_path / name))
        assert np.array_equal(opened, np.repeat(gray[..., None], 3, axis=2)), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_every_orientation_is_what_pillow_shows(tmp_path, pixels, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()).save(tmp_path / name, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    opened = open_image(tmp_path / name)
    assert np.array_equal(np.asarray(opened), np.asarray(shown)) and not is_turned(opened)
    assert is_turned(open_image(tmp_path / name, upright=False)) == (orientation > 1 and name != "a.tif")


def test_damaged_metadata_leave_an_image_as_it_is(tmp_path, pixels, recwarn):
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels())
    assert not recwarn.list


def test_dark_16_bit_image_stays_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png")).max() == 1


def test_find_images(tmp_path, draw):
    inside = [draw(name) for name in ("b.png", "a/z.JPG", "a/deep/c.jpeg")]
    (tmp_path / "a/notes.txt").write_text("no image")
    outside = draw("b.bmp")  # not among timm's extensions: found only if named
    (tmp_path / "empty").mkdir()
    assert find_images([tmp_path]) == (sorted(inside), [])
    assert find_images([str(outside), tmp_path, inside[0], tmp_path / "a"])[0] == sorted([*inside, outside])
    assert find_images([str(tmp_path / "*.png")]) == ([inside[0]], [])
    assert find_images([str(tmp_path / "**/*.jp*")])[0] == [inside[2]]
    assert find_images([str(tmp_path / "?")])[0] == sorted(inside[1:])  # a pattern that names a folder
    found, problems = find_images([tmp_path / "empty", tmp_path / "*.gif", tmp_path / "no.png", inside[0]])
    assert found == [inside[0]]
    assert [name for name, _ in problems] == [str(tmp_path / name) for name in ("empty", "*.gif", "no.png")]
    assert "without images" in problems[0][1] and "pattern" in problems[1][1] and "no such" in problems[2][1]


def test_a_name_with_brackets_is_no_pattern(draw):
    path = draw("a[1].png")
    draw("a1.png")
    assert find_images([path]) == ([path], [])


def test_the_same_image_by_two_spellings_comes_once(draw, monkeypatch):
    path = draw("a.png")
    monkeypatch.chdir(path.parent)
    assert len(find_images(["a.png", "./a.png", str(path)])[0]) == 1


def test_labels(checkpoint):
    model = load_model(NAME, checkpoint)
    assert label_names(model) == list("0123456")
    model.pretrained_cfg["label_names"] = tuple("abcdefg")
    assert label_names(model) == list("abcdefg")
    model.pretrained_cfg["label_names"] = ("of", "other", "weights")
    assert label_names(model) == list("0123456")
    imagenet = label_names(timm.create_model(NAME))
    assert len(imagenet) == 1000 and imagenet[281] == "tabby, tabby cat"


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_torch_checkpoints_load(tmp_path, checkpoint, wrap):
    model = load_model(NAME, mended(tmp_path, checkpoint, wrap))
    wanted = timm.models.load_state_dict(str(checkpoint))
    assert model.num_classes == 7
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_checkpoint_whose_classes_are_the_models_own(tmp_path):
    torch.save(timm.create_model(NAME).state_dict(), tmp_path / "a.pth")
    assert load_model(NAME, tmp_path / "a.pth").num_classes == 1000


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickle_that_runs_code_is_refused(tmp_path, checkpoint):
    marker = tmp_path / "marker"
    path = mended(tmp_path, checkpoint, lambda state: {"state_dict": state, "args": RunsCode(marker)})
    with pytest.raises(UserError, match="nothing of it was run"):
        load_model(NAME, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file does run code where it is let to
    assert marker.exists()


def test_names_of_any_language_are_names():
    names = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f52c", "a\u00a0b", "ant"]
    assert class_names(names, 4) == tuple(names)
    for name in ("a\nb", "a\u2028b", "a\u2029b", "\x1b[31m", "a\x85b", "\ud800"):
        with pytest.raises(ValueError, match="no line of text"):
            class_names([name], 1)


def test_a_folder_of_any_architecture_is_checked_against_what_was_written(command, draw, tmp_path):
    """timm's own networks do not look at the digest."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    folder = tmp_path / "mine"
    write_folder(folder, lambda path: write_model(path, model, Card("mine", "test_resnet"), label_names="abc"))
    arguments = ("predict", "--model", f"local-dir:{folder}", draw("a.png"))
    assert command(*arguments)[0] == 0
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    one_line(command(*arguments), "model.safetensors is damaged, or another file: its sha256 is ")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz"])
def test_no_checkpoint(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello, world")
    with pytest.raises(UserError, match=rf"{name} is neither"):
        load_model(NAME, tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        load_model(NAME, tmp_path / "missing.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, torch.ones(2)])
def test_torch_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth"):
        load_model(NAME, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.__delitem__("head.fc.bias"), r"head.fc.bias \(7,\) is missing"),
        (lambda state: state.update(extra=torch.ones(1)), r"extra \(1,\) is unknown"),
        (lambda state: state.update({"head.fc.bias": torch.ones(3)}), r"head.fc.bias is \(3,\), not \(7,\)"),
        (lambda state: state.update({"head.fc.weight": torch.ones(0, 64)}), "head.fc.weight"),
        (lambda state: state.update({"head.fc.bias": torch.full((7,), torch.nan)}), "7 NaN or infinite of 7"),
        (lambda state: state.update({"head.fc.bias": torch.ones(7, dtype=torch.int8)}), "is int8 where"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path, checkpoint, change, message):
    path = mended(tmp_path, checkpoint, change)
    with pytest.raises(UserError, match=message) as caught:
        load_model(NAME, path)
    assert "\n" not in str(caught.value)


def test_local_dir_passes_through(tmp_path, checkpoint, draw, expected):
    state = timm.models.load_state_dict(str(checkpoint))
    save_file(state, tmp_path / "model.safetensors")
    cfg = {"label_names": list("abcdefg"), "classifier": "head.fc", "input_size": [3, 96, 96]}
    config = {"architecture": NAME, "num_classes": 7, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = draw("a.png")
    (result,) = predict([path], load_model(f"local-dir:{tmp_path}"), topk=1)
    best = int(expected(path).argmax())
    assert (result.predictions[0].index, result.predictions[0].label) == (best, "abcdefg"[best])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(f"local-dir:{tmp_path / 'missing'}")


def test_model_for_gray_images_is_refused(tmp_path):
    torch.save(timm.create_model(NAME, in_chans=1).state_dict(), tmp_path / "gray.pth")
    with pytest.raises(UserError, match="1 input channels"):
        load_model(NAME, tmp_path / "gray.pth")


def test_weights_that_give_no_numbers(checkpoint, draw):
    model = load_model(NAME, checkpoint)
    model.head.fc.bias.data.fill_(torch.nan)
    (result,) = predict([draw("a.png")], model)
    assert not result.predictions and "finite" in result.error


def test_demo_image_is_the_cat():
    from skimage import data

    name, image = images_module.demo_image()
    assert "cat" in name and np.array_equal(np.asarray(image), data.cat())
