"""`lambdaresnet-zoo convert`: every known format in, a folder out that gives the source's outputs; or one line."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from command import one_line
from lambda_networks import LambdaLayer as Lucidrains
from models.timm_models import PAIRS, perturbed
from ports import DLi14, Leaderj1001, Leaderj1001V0, disturb
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lambdaresnet_zoo
from lambdaresnet_zoo.conversion import matching
from lambdaresnet_zoo.conversion.convert import Options, convert
from lambdaresnet_zoo.conversion.single_layer import load_layer
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.layers import LambdaLayer
from lambdaresnet_zoo.weights.files import read_rows
from lambdaresnet_zoo.weights.shipped import digest, shipped_file

NAME = "test_lambdaresnet"
TWINS = ("lambdaresnet50_leaderj1001", "lambdaresnet50_llll")  # the same tensors: their pools alone differ
FILES = {"README.md", "config.json", "lambdaresnet_zoo_remote.py", "model.safetensors"}


def outputs(model, size, channels=3):
    """In float64: rounding differs from one order of contraction to another, and deep networks amplify it."""
    x = torch.randn(2, channels, *((size, size) if isinstance(size, int) else size), generator=torch.manual_seed(0))
    with torch.inference_mode():
        return copy.deepcopy(model).eval().double()(x.double())


def load(folder, **kwargs):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def assert_loads_as(folder, theirs, size=96, channels=3, tolerance=1e-5):
    """The folder's model gives the outputs of another, as do its classes and channels."""
    expected = outputs(theirs, size, channels)
    found = outputs(load(folder), size, channels)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@pytest.fixture
def tiny(checkpoint):
    """The model behind the file `checkpoint`."""
    return timm.create_model(NAME, num_classes=7, checkpoint_path=str(checkpoint)).eval()


class TestFormats:
    @pytest.mark.parametrize("name", PAIRS)
    def test_timms_networks(self, name, tmp_path):
        theirs = perturbed(name)
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        report = convert(str(tmp_path / "model.safetensors"), tmp_path / "out")
        assert (report.model, report.format) == (name, "timm lambda network")
        assert {row.status for row in report.rows} == {"mapped"}
        assert {row.source for row in report.rows} == theirs.state_dict().keys()
        assert_loads_as(tmp_path / "out", theirs, size=256)

    def test_timms_training_with_its_wrappers(self, tmp_path):
        state = perturbed("lambdaresnet26t").state_dict()
        average = {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}
        checkpoint = {
            "epoch": 3,
            "arch": "lambda_resnet26t",
            "state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()},
            "state_dict_ema": {f"_orig_mod.module.{key}": value for key, value in average.items()},
        }
        torch.save(checkpoint, tmp_path / "last.pth.tar")
        for options, wanted in ((Options(), average), (Options(use_ema=False), state)):
            folder = tmp_path / f"ema-{options.use_ema}"
            report = convert(str(tmp_path / "last.pth.tar"), folder, options)
            assert report.entry == ("state_dict_ema" if options.use_ema else "state_dict")
            written = load_file(folder / "model.safetensors")
            assert torch.equal(written["head.fc.weight"], wanted["head.fc.weight"])

    def test_another_size_of_the_global_network(self, tmp_path):
        """The size is that of its tables; timm has no such network to compare with."""
        ours = timm.create_model("lambdaresnet26rpt_256", img_size=(192, 320), num_classes=5, in_chans=1).eval()
        save_file(ours.state_dict(), tmp_path / "a.safetensors")
        report = convert(str(tmp_path / "a.safetensors"), tmp_path / "out")
        assert report.arguments == {"num_classes": 5, "in_chans": 1, "img_size": (192, 320)}
        assert_loads_as(tmp_path / "out", ours, (192, 320), channels=1)
        assert load(tmp_path / "out").pretrained_cfg["input_size"] == (1, 192, 320)

    @pytest.mark.parametrize(
        ("port", "depths", "name", "wrap"),
        [
            (DLi14, (2, 2, 2, 2), "lambdaresnet26_dli14", lambda state: {"state_dict": state, "best_acc": 78.2}),
            (
                Leaderj1001,
                (2, 2, 2, 2),
                "lambdaresnet18_leaderj1001",
                lambda state: {"model_state_dict": state, "global_epoch": 3},
            ),
            (Leaderj1001V0, (2, 2, 2, 2), "lambdaresnet18_leaderj1001_v0", lambda state: {"model_state_dict": state}),
        ],
    )
    def test_public_ports(self, port, depths, name, wrap, tmp_path):
        torch.manual_seed(0)
        theirs = port(depths)
        disturb(theirs, torch.randn(4, 3, 64, 64))
        state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
        torch.save(wrap(state), tmp_path / "best.pth")
        report = convert(str(tmp_path / "best.pth"), tmp_path / "out")
        assert report.model == name
        folded = {row.source for row in report.rows if row.status == "folded"}
        assert folded == (set() if port is DLi14 else {f"layer{n}.0.shortcut.0.bias" for n in range(1, 5)})
        assert "left" not in {row.status for row in report.rows}
        assert_loads_as(tmp_path / "out", theirs, size=64)

    @pytest.mark.parametrize("options", [{"r": 5}, {"n": 6}])
    def test_single_layers(self, options, tmp_path):
        torch.manual_seed(0)
        theirs = Lucidrains(dim=12, dim_out=16, dim_k=4, heads=2, dim_u=2, **options)
        disturb(theirs, torch.randn(4, 12, 6, 6))
        torch.save(theirs.state_dict(), tmp_path / "layer.pth")
        report = convert(str(tmp_path / "layer.pth"), tmp_path / "out")
        assert not report.is_model and report.model.startswith("LambdaLayer(12, 16, ")
        layer = load_layer(tmp_path / "out")
        x = torch.randn(2, 12, 6, 6)
        with torch.inference_mode():
            expected = theirs(x)
            assert (layer(x) - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_this_projects_training(self, tmp_path):
        from lambdaresnet_zoo.tasks import train_cifar10
        from lambdaresnet_zoo.tasks.cifar10 import Split

        images = torch.randint(0, 255, (128, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
        split = Split(images, torch.arange(128) % 10)
        train_cifar10.train("lambdaresnet32px", split, {"top1": split}, tmp_path / "run", 1, 0, torch.device("cpu"))
        report = convert(str(tmp_path / "run" / "last.pt"), tmp_path / "out")
        assert (report.format, report.entry, report.model) == ("LambdaResNet Zoo", "ema", "lambdaresnet32px")
        trained = load_file(tmp_path / "run" / "model.safetensors")  # the average, written by the training
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert written.keys() == trained.keys() and all(torch.equal(written[key], trained[key]) for key in trained)

    @pytest.mark.slow
    def test_every_model_is_known_by_its_tensors(self):
        for name in lambdaresnet_zoo.list_models():
            state = timm.create_model(name, device="meta", num_classes=3).state_dict()
            if name in TWINS:
                with pytest.raises(UserError, match=f"fit {TWINS[0]}, {TWINS[1]}: name one with --model"):
                    matching.find_model(state)
            else:
                assert matching.find_model(state) == name


class TestFolder:
    def test_a_shipped_file_comes_out_as_it_went_in(self, tmp_path):
        convert("lambdaresnet32px.cifar10", tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
        assert digest(tmp_path / "out" / "model.safetensors") == digest(Path(shipped_file("lambdaresnet32px.cifar10")))

    def test_what_is_published_is_what_hub_holds(self, tmp_path):
        """hub/ is generated without weights: all but their digest must be the same."""
        root = Path(lambdaresnet_zoo.__file__).parents[1] / "hub" / "lambdaresnet32px.cifar10"
        convert("lambdaresnet32px.cifar10", tmp_path / "out")
        for path in root.iterdir():
            assert (tmp_path / "out" / path.name).read_text() == path.read_text(), path.name

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision(self, dtype, command, checkpoint, tiny, tmp_path):
        status, _, err = command("convert", checkpoint, tmp_path / "out", "--dtype", dtype)
        assert (status, err) == (0, [])
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118  no mapping
            assert file.metadata() == {"format": "pt"}
        assert dtypes == {getattr(torch, dtype), torch.int64}
        assert_loads_as(tmp_path / "out", tiny, tolerance=0.05)
        assert f"Stored in {dtype}." in (tmp_path / "out" / "README.md").read_text()

    def test_values_beyond_half_precision(self, command, tiny, tmp_path):
        tiny.head.fc.bias.data[0] = 1e6
        save_file(tiny.state_dict(), tmp_path / "a.safetensors")
        outcome = command("convert", tmp_path / "a.safetensors", tmp_path / "out", "--dtype", "float16")
        one_line(outcome, "a.safetensors", "head.fc.bias", "float16", "bfloat16")
        assert not (tmp_path / "out").exists()

    def test_labels_card_and_verification(self, command, checkpoint, expected, draw, tmp_path):
        (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\neel\nfox\ngnu\n")
        path = draw("a.png")
        facts = ["--labels", tmp_path / "names.txt", "--license", "mit", "--data", "photos of mine", "--recipe", "SGD"]
        status, out, err = command("convert", checkpoint, tmp_path / "out", *facts, "--verify", path)
        assert (status, err) == (0, [])
        values, indices = expected(path).topk(5)
        names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
        shown = [f"  {100 * v:6.2f}%  {names[i]}" for v, i in zip(values, indices, strict=True)]
        assert out[-7:-1] == [str(path), *shown]
        assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == names
        card = (tmp_path / "out" / "README.md").read_text()
        for text in ("license: mit", "data: photos of mine", "recipe: SGD", "classes: 7, named", "Converted by"):
            assert text in card
        assert digest(tmp_path / "out" / "model.safetensors") in card
        assert str(tmp_path) not in card  # nobody's folders go to the Hub

    def test_report(self, command, tiny, tmp_path):
        state = tiny.state_dict() | {"teacher.weight": torch.ones(2), "n_averaged": torch.tensor(3)}
        state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
        torch.save(state, tmp_path / "a.pth")
        one_line(command("convert", tmp_path / "a.pth", tmp_path / "out"), "a.pth", "teacher.weight (2,) is unknown")
        assert not (tmp_path / "out").exists()
        drop = ["--drop", "teacher.*", "--drop", "n_averaged"]
        arguments = ["convert", tmp_path / "a.pth", tmp_path / "out", *drop, "--report", tmp_path / "report.csv"]
        status, out, err = command(*arguments)
        assert (status, err) == (0, [])
        rows = read_rows(tmp_path / "report.csv")
        own = tiny.state_dict()
        counters = {key for key in own if "num_batches_tracked" in key}
        assert {row["source"] for row in rows if row["status"] == "left"} == {"teacher.weight", "n_averaged"}
        assert {row["key"] for row in rows if row["status"] == "filled"} == counters
        assert {row["key"] for row in rows if row["status"] == "mapped"} == own.keys() - counters
        (head,) = [row for row in rows if row["key"] == "head.fc.weight"]
        assert head["shape"] == f"7x{own['head.fc.weight'].shape[1]}"
        assert out[1] == f"model: {NAME}, num_classes=7"
        assert out[2] == f"tensors: {len(own) - len(counters)} mapped, {len(counters)} filled, 2 left"
        assert "  left: teacher.weight, dropped as asked (2,)" in out
        assert_loads_as(tmp_path / "out", tiny)

    def test_a_folder_converts_again(self, checkpoint, tiny, tmp_path):
        convert(str(checkpoint), tmp_path / "a", Options(license="mit", label_names=list("abcdefg")))
        convert(f"local-dir:{tmp_path / 'a'}", tmp_path / "b", Options(dtype=torch.bfloat16))
        config = json.loads((tmp_path / "b" / "config.json").read_text())
        assert config["label_names"] == list("abcdefg") and config["pretrained_cfg"]["license"] == "mit"
        assert_loads_as(tmp_path / "b", tiny, tolerance=0.05)

    def test_statements_survive_a_second_conversion(self, checkpoint, tmp_path):
        stated = Options(license="cc-by-nc-4.0", data="photos of mine", recipe="SGD", label_names=list("abcdefg"))
        convert(str(checkpoint), tmp_path / "a", stated)
        convert(str(tmp_path / "a"), tmp_path / "b", Options(dtype=torch.float16))
        card = (tmp_path / "b" / "README.md").read_text()
        for text in ("license: cc-by-nc-4.0", "data: photos of mine", "recipe: SGD", "Stored in float16"):
            assert text in card
        convert(str(tmp_path / "b"), tmp_path / "c")  # half precision stays as it is
        with safe_open(tmp_path / "c" / "model.safetensors", "pt") as file:
            assert file.get_tensor("head.fc.weight").dtype == torch.float16

    def test_figures_stay_with_what_was_measured(self, tmp_path):
        convert("lambdaresnet32px.cifar10", tmp_path / "a")
        convert(str(tmp_path / "a"), tmp_path / "again")
        assert "82.31" in (tmp_path / "again" / "README.md").read_text()
        convert(str(tmp_path / "a"), tmp_path / "half", Options(dtype=torch.float16))
        card = (tmp_path / "half" / "README.md").read_text()
        assert "82.31" not in card and "Stored in float16" in card

    def test_a_card_tells_the_input_and_the_task(self, tmp_path):
        save_file(timm.create_model(NAME, in_chans=5, num_classes=0).state_dict(), tmp_path / "a.safetensors")
        convert(str(tmp_path / "a.safetensors"), tmp_path / "out")
        card = (tmp_path / "out" / "README.md").read_text()
        assert "input: 5x96x96" in card and "no classifier" in card
        assert "image-classification" not in card and "image-feature-extraction" in card
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "AutoModelForImageClassification" not in config["auto_map"]

    def test_names_by_number(self, checkpoint, tmp_path):
        """timm takes a mapping where some classes have no name."""
        convert(str(checkpoint), tmp_path / "a")
        path = tmp_path / "a" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "label_names": {"0": "ant", "6": "gnu"}}))
        convert(str(tmp_path / "a"), tmp_path / "b")
        names = json.loads((tmp_path / "b" / "config.json").read_text())["label_names"]
        assert names == ["ant", "1", "2", "3", "4", "5", "gnu"]

    def test_a_tag_in_a_config_claims_nothing(self, tmp_path):
        """Fine-tuned weights keep the tag that they were started from; their card has no figures of others."""
        theirs = perturbed("lambdaresnet26t")
        theirs.pretrained_cfg = timm.models.get_pretrained_cfg("lambda_resnet26t.c1_in1k").to_dict()
        timm.models.save_for_hf(theirs, tmp_path / "tuned", safe_serialization=True)
        assert json.loads((tmp_path / "tuned" / "config.json").read_text())["pretrained_cfg"]["tag"] == "c1_in1k"
        convert(str(tmp_path / "tuned"), tmp_path / "out")
        card = (tmp_path / "out" / "README.md").read_text()
        assert "79.126" not in card and "Published figures: none" in card and "data: not stated" in card
        assert not json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"].get("tag")

    def test_options_of_the_network(self, command, tmp_path):
        ours = timm.create_model(NAME, self_attn_kwargs={"scope": 3})
        save_file(ours.state_dict(), tmp_path / "a.safetensors")
        arguments = ["convert", tmp_path / "a.safetensors", tmp_path / "out"]
        one_line(command(*arguments), "fit no model", "the nearest is test_lambdaresnet", "--model-kwargs")
        chosen = ["--model", NAME, "--model-kwargs", "self_attn_kwargs={'scope': 3}"]
        assert command(*arguments, *chosen)[0] == 0
        assert_loads_as(tmp_path / "out", ours)

    def test_a_damaged_folder_is_refused_with_both_digests(self, checkpoint, tmp_path):
        convert(str(checkpoint), tmp_path / "out")
        weights = tmp_path / "out" / "model.safetensors"
        known = digest(weights)
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(RuntimeError, match=f"is {digest(weights)}, not {known}"):
            load(tmp_path / "out")
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=False)


class TestRefusals:
    """One line, exit status 2, and nothing left behind."""

    @pytest.fixture(autouse=True)
    def nothing_left(self, tmp_path):
        yield
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]

    def save(self, tmp_path, change=lambda state: None):
        state = timm.create_model(NAME).state_dict()
        change(state)
        torch.save(state, tmp_path / "a.pth")
        return "convert", tmp_path / "a.pth", tmp_path / "out"

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (lambda state: state["head.fc.bias"].fill_(torch.nan), ["head.fc.bias", "1000 NaN"]),
            (lambda state: state["stem.conv1.conv.weight"][0].fill_(torch.inf), ["stem.conv1.conv.weight", "infinite"]),
            (
                lambda state: state.update({"head.fc.bias": torch.ones(1000).to(torch.int32)}),
                ["int32 where", "float32"],
            ),
            (lambda state: state.update({"head.fc.bias": torch.ones(3)}), ["head.fc.bias is (3,), not (1000,)"]),
            (lambda state: state.pop("stem.conv1.conv.weight"), ["nearest is", "stem.conv1.conv.weight", "missing"]),
            (
                lambda state: state.clear() or state.update({"encoder.w": torch.ones(1)}),
                ["unknown layout", "encoder.w"],
            ),
        ],
    )
    def test_weights_that_are_wrong(self, change, parts, command, tmp_path):
        one_line(command(*self.save(tmp_path, change)), "a.pth", *parts)

    def test_sources_that_are_none(self, command, tmp_path):
        out = tmp_path / "out"
        one_line(command("convert", "nothing", out), "nothing: no such file or folder")
        one_line(command("convert", f"local-dir:{tmp_path / 'no'}", out), "no such folder")
        one_line(command("convert", tmp_path, out), "without weights")
        one_line(command("convert", "lambdaresnet152", out), "no public weights", "--warm-start timm/resnetrs152")
        one_line(command("convert", "", out), "SOURCE is empty")
        one_line(command("convert", "x" * 300, out), "x" * 50)
        for name in ("a.safetensors", "b.safetensors"):
            save_file({"a": torch.ones(1)}, tmp_path / name)
        one_line(command("convert", tmp_path, out), "holds a.safetensors, b.safetensors")
        (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 and no more")
        one_line(command("convert", tmp_path / "a.pth", out), "a.pth", "not a whole torch file")

    def test_options_that_are_wrong(self, command, tmp_path, draw):
        arguments = self.save(tmp_path)
        (tmp_path / "names.txt").write_text("ant\nbee\n")
        one_line(command(*arguments, "--labels", tmp_path / "names.txt"), "names 2 classes, and the model has 1000")
        one_line(command(*arguments, "--labels", tmp_path / "no.txt"), "no.txt")
        one_line(command(*arguments, "--labels", draw("a.png")), "a.png", "text")
        (tmp_path / "twice.txt").write_text("ant\nbee\nant\n")
        one_line(command(*arguments, "--labels", tmp_path / "twice.txt"), "the class ant is named twice")
        one_line(command(*arguments, "--license", "my licence\n# HACK"), "--license", "no identifier")
        one_line(command(*arguments, "--drop", "*"), "leaves nothing")
        one_line(command(*arguments, "--drop", "nothing.*"), "nothing.*", "matches no key")
        one_line(command(*arguments, "--model", "lambdaresnet50"), "do not fit lambdaresnet50")
        one_line(command(*arguments, "--model", "lambdaresnet5O"), "lambdaresnet5O", "lambdaresnet50")
        one_line(command(*arguments, "--model-kwargs", "colour=red"), "--model-kwargs", "'colour' is none of")
        for argument in ("pretrained=True", "checkpoint_path=/etc/passwd", "pretrained_cfg_overlay={}"):
            one_line(command(*arguments, "--model-kwargs", argument), argument.split("=")[0], "is none of")
        for argument in ("global_pool=bogus", "act_layer=nope", "self_attn_kwargs={'scope': 4}"):
            one_line(command(*arguments, "--model", NAME, "--model-kwargs", argument), "cannot be built")
        one_line(command(*arguments, "--verify", tmp_path / "no.jpg"), "no.jpg")
        assert command(*arguments, "--model-kwargs", "red")[0] == 2

    def test_a_report_that_cannot_be_written(self, command, tmp_path):
        arguments = self.save(tmp_path)
        before = (tmp_path / "a.pth").read_bytes()
        for report in (tmp_path / "a.pth", tmp_path, tmp_path / "no" / "r.csv"):
            one_line(command(*arguments, "--report", report), report, "name a file for the report")
        assert (tmp_path / "a.pth").read_bytes() == before

    def test_weights_that_do_not_fit_are_reported_in_full(self, command, tmp_path):
        state = timm.create_model(NAME).state_dict()
        for key in list(state)[:4]:
            del state[key]
        state |= {"head.fc.bias": torch.ones(3), "teacher.weight": torch.ones(2)}
        torch.save(state, tmp_path / "a.pth")
        arguments = ["convert", tmp_path / "a.pth", tmp_path / "out", "--report", tmp_path / "r.csv", "--model", NAME]
        one_line(command(*arguments), "head.fc.bias is (3,), not (1000,)", "more", "--drop")
        rows = read_rows(tmp_path / "r.csv")
        own = list(timm.create_model(NAME).state_dict())
        assert [row["key"] for row in rows if row["status"] == "missing"] == own[:4]
        assert {row["source"]: row["shape"] for row in rows if row["status"] == "unknown"} == {"teacher.weight": "2"}
        assert [row["source"] for row in rows if row["status"] == "misshapen"] == ["head.fc.bias"]

    def test_a_verification_that_cannot_be_done(self, command, tmp_path, draw):
        image = draw("a.png")
        arguments = self.save(tmp_path)
        (tmp_path / "text.png").write_text("no image")
        one_line(command(*arguments, "--verify", tmp_path / "text.png"), "text.png")
        for change in ({"in_chans": 1}, {"num_classes": 0}):
            save_file(timm.create_model(NAME, **change).state_dict(), tmp_path / "b.safetensors")
            outcome = command("convert", tmp_path / "b.safetensors", tmp_path / "out", "--verify", image)
            assert outcome[0] == 2 and "use one for RGB" in outcome[2][-1]
            assert not (tmp_path / "out").exists()
        torch.save(LambdaLayer(8, query_depth=2, num_heads=2, scope=3).state_dict(), tmp_path / "layer.pth")
        one_line(command("convert", tmp_path / "layer.pth", tmp_path / "out", "--verify", image), "single lambda layer")
        one_line(command("convert", tmp_path / "layer.pth", tmp_path / "out", "--license", "mit"), "takes no --license")

    def test_parents_that_were_made_are_removed(self, command, tmp_path):
        state = timm.create_model(NAME).state_dict()
        state["head.fc.bias"][0] = 1e6
        save_file(state, tmp_path / "a.safetensors")
        (tmp_path / "mine").mkdir()
        for place in (tmp_path / "p" / "q" / "r", tmp_path / "mine"):
            one_line(command("convert", tmp_path / "a.safetensors", place, "--dtype", "float16"), "beyond the range")
        assert not (tmp_path / "p").exists() and (tmp_path / "mine").is_dir()
        assert command("convert", tmp_path / "a.safetensors", tmp_path / "mine")[0] == 0  # empty, so it may be used

    def test_a_damaged_source_with_a_known_digest(self, command, checkpoint, tmp_path):
        convert(str(checkpoint), tmp_path / "first")
        weights = tmp_path / "first" / "model.safetensors"
        known, content = digest(weights), bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        one_line(command("convert", tmp_path / "first", tmp_path / "out"), known, digest(weights))

    @pytest.mark.parametrize(
        "change",
        [
            {"pretrained_cfg": None},
            {"pretrained_cfg": []},
            {"model_args": None},
            {"model_args": {"pretrained": True}},
            {"model_args": {"checkpoint_path": "/etc/passwd"}},
            {"model_args": {"pretrained_cfg_overlay": {"hf_hub_id": "evil/tracker"}}},
            {"model_args": {"global_pool": {"a": 1}}},
            {"model_args": {"global_pool": "bogus"}},
            {"label_names": 5},
            {"label_names": ["a", "b"]},
            {"label_names": [["a"]] * 7},
            {"architecture": 3},
            {"pretrained_cfg": {"license": "mit\n# HACK"}},
            {"pretrained_cfg": {"license": "x" * 5000}},
            {"pretrained_cfg": {"input_size": "junk"}},
            {"pretrained_cfg": {"input_size": 5}},
            {"pretrained_cfg": {"crop_pct": "abc"}},
            {"pretrained_cfg": {"mean": "x"}},
            {"pretrained_cfg": {"interpolation": "../x"}},
            {"lambdaresnet_zoo": {"sha256": ["x"]}},
            {"lambdaresnet_zoo": 3},
        ],
        ids=str,
    )
    def test_a_hostile_configuration(self, change, command, checkpoint, tmp_path, hub):
        convert(str(checkpoint), tmp_path / "first", Options(label_names=list("abcdefg")))
        path = tmp_path / "first" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        status, out, err = command("convert", tmp_path / "first", tmp_path / "out")
        assert hub.requests == []
        if change == {"lambdaresnet_zoo": {"sha256": ["x"]}}:  # no digest of the weights: nothing to check
            assert status == 0
            shutil.rmtree(tmp_path / "out")
            return
        one_line((status, out, err), "first")
        assert len(err[0]) < 600

    def test_configurations_that_are_no_json(self, command, checkpoint, tmp_path):
        convert(str(checkpoint), tmp_path / "first")
        for content in (b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"3"):
            (tmp_path / "first" / "config.json").write_bytes(content)
            one_line(command("convert", tmp_path / "first", tmp_path / "out"), "config.json")

    def test_a_place_that_is_taken(self, command, tmp_path):
        _, path, _ = self.save(tmp_path)
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "mine").write_text("keep")
        one_line(command("convert", path, tmp_path / "taken"), "taken exists already")
        one_line(command("convert", path, path), "a.pth exists already")
        assert (tmp_path / "taken" / "mine").read_text() == "keep"
        one_line(command("convert", path, path / "below"), "cannot be written")

    def test_an_interruption_leaves_nothing(self, command, tmp_path, monkeypatch):
        from lambdaresnet_zoo.weights import folder

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        arguments = self.save(tmp_path)
        monkeypatch.setattr(folder, "config_json", interrupt)  # the weights have been written by then
        assert command(*arguments)[0] == 130

    def test_a_full_disk(self, command, tmp_path, monkeypatch):
        from lambdaresnet_zoo.weights import folder

        def full(*args, **kwargs):
            raise OSError(28, os.strerror(28))

        arguments = self.save(tmp_path)
        monkeypatch.setattr(folder, "config_json", full)
        one_line(command(*arguments), "out cannot be written: No space left")

    def test_a_layer_that_does_not_fit(self, tmp_path):
        state = LambdaLayer(8, query_depth=2, num_heads=2, scope=3).state_dict()
        state["norm_q.weight"] = torch.ones(5)
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"a\.pth"):
            convert(str(tmp_path / "a.pth"), tmp_path / "out")
        with pytest.raises(UserError, match="no lambda layer"):
            load_layer(tmp_path)


def test_the_process(checkpoint, tmp_path):
    """As a user runs it: status, and nothing on stderr."""
    process = subprocess.run(
        [sys.executable, "-m", "lambdaresnet_zoo", "convert", str(checkpoint), "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(lambdaresnet_zoo.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines()[-1] == "wrote out: timm.create_model('local-dir:out', pretrained=True)"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
