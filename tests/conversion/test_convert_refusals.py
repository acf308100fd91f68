"""What `lambdaresnet-zoo convert` refuses, each in one line, with nothing written."""

import json
import os
import shutil

import pytest
import timm
import torch
from command import one_line
from converted import NAME
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import nn

from lambdaresnet_zoo.conversion.convert import Options, convert
from lambdaresnet_zoo.conversion.single_layer import load_layer
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.layers import LambdaLayer
from lambdaresnet_zoo.weights.files import read_rows
from lambdaresnet_zoo.weights.shipped import digest


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

    @pytest.mark.parametrize("name", [NAME, "lambda_mobilenetv2_100", "lambdaresnet26t", "lambdaresnet32px_conv"])
    def test_weights_that_were_folded(self, name, command, tmp_path):
        """Of the second, one lambda layer alone folds."""
        torch.save(reparameterize_model(timm.create_model(name).eval()).state_dict(), tmp_path / "a.pth")
        told = ("a.pth: the weights were folded for inference", "save the state_dict() before reparameterize_model")
        for options in ((), ("--model", name)):
            outcome = command("convert", tmp_path / "a.pth", tmp_path / "out", *options)
            one_line(outcome, *told)
            assert "--model" not in outcome[2][0]

    def test_a_layer_that_was_folded(self, command, tmp_path):
        layer = reparameterize_model(nn.Sequential(LambdaLayer(8, query_depth=2, num_heads=2, scope=3)).eval())[0]
        torch.save(layer.state_dict(), tmp_path / "a.pth")
        one_line(command("convert", tmp_path / "a.pth", tmp_path / "out"), "a.pth: the weights were folded")

    def test_a_bias_of_ones_own_is_no_folding(self, command, tmp_path):
        arguments = self.save(tmp_path, lambda state: state.update({"stem.conv1.conv.bias": torch.ones(24)}))
        one_line(command(*arguments), "stem.conv1.conv.bias (24,) is unknown")

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
        one_line(command(*arguments, "--license", "CC BY-SA 4.0"), "'CC BY-SA 4.0'", "such as cc-by-sa-4.0")
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
