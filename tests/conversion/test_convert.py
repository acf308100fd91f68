"""`lambdaresnet-zoo convert`: every known format in, a folder out that gives the source's outputs; or one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from command import one_line
from converted import FILES, NAME, TWINS, assert_loads_as, load
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
from lambdaresnet_zoo.weights.cards import CIFAR10
from lambdaresnet_zoo.weights.files import read_rows
from lambdaresnet_zoo.weights.shipped import digest, shipped_file


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

    def test_this_projects_training(self, command, draw, tmp_path):
        for seed in range(16):
            draw(f"photos/{'val' if seed < 4 else 'train'}/{'ab'[seed % 2]}/{seed}.png", seed)
        run = tmp_path / "run"
        options = ("--epochs", 1, "--batch-size", 4, "--warmup-epochs", 0, "--workers", 0, "--device", "cpu")
        recipe = ("--recipe", "cifar10", "--model", "lambdaresnet32px", "--data", tmp_path / "photos", "--output", run)
        status, _, err = command("train", *recipe, *options)
        assert status == 0, err
        trained = load_file(run / "model" / "model.safetensors")  # the average, written by the training
        for name, entry, use_ema in (("last", "ema", True), ("best", "model", True), ("last", "model", False)):
            out = tmp_path / f"{name}-{use_ema}"
            report = convert(str(run / f"{name}.pt"), out, Options(use_ema=use_ema))
            assert (report.format, report.entry, report.model) == ("LambdaResNet Zoo", entry, "lambdaresnet32px")
            written = load_file(out / "model.safetensors")
            assert written.keys() == trained.keys()
            assert all(torch.equal(written[key], trained[key]) for key in trained) == use_ema

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

    def test_a_licence_that_the_hub_does_not_list_is_told(self, command, checkpoint, tmp_path):
        status, _, err = command("convert", checkpoint, tmp_path / "out", "--license", "mti")
        assert status == 0 and len(err) == 1 and err[0].startswith("warning: the Hub lists no licence 'mti'")
        assert "did you mean mit" in err[0] and "license: mti" in (tmp_path / "out" / "README.md").read_text()

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
        (recorded,) = read_rows(CIFAR10)
        assert recorded["top1"] in (tmp_path / "again" / "README.md").read_text()
        convert(str(tmp_path / "a"), tmp_path / "half", Options(dtype=torch.float16))
        card = (tmp_path / "half" / "README.md").read_text()
        assert recorded["top1"] not in card and "Stored in float16" in card

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
