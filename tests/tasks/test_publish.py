"""`lambdaresnet-zoo publish`, with the real client against a hub on the loopback, and back by timm."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from command import one_line
from models.timm_models import perturbed
from safetensors.torch import save_file

import lambdaresnet_zoo
from lambdaresnet_zoo.conversion.convert import Options, convert
from lambdaresnet_zoo.layers import LambdaLayer
from lambdaresnet_zoo.weights.shipped import digest

REPO = "me/tiny"
LOAD = f"timm.create_model('hf-hub:{REPO}', pretrained=True)"
FILES = {"README.md", "config.json", "lambdaresnet_zoo_remote.py", "model.safetensors"}


@pytest.fixture
def token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)


@pytest.fixture
def folder(checkpoint, tmp_path):
    convert(str(checkpoint), tmp_path / "out", Options(license="mit", label_names=list("abcdefg")))
    return tmp_path / "out"


def logits(model):
    with torch.inference_mode():
        return model.eval()(torch.randn(2, 3, 96, 96, generator=torch.manual_seed(0)))


def test_a_folder(hub, token, folder, command):
    (folder / "notes.txt").write_text("private")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    status, out, err = command("publish", folder, REPO)
    assert (status, err) == (0, [])
    files = hub.files(REPO)
    assert files.keys() == FILES
    assert [line for line in out if "not uploaded" in line] == [
        "  not uploaded: notes.txt",
        "  not uploaded: pytorch_model.bin",
    ]
    assert out[0] == f"uploaded to {hub.url}/{REPO}:"
    assert out[-2].startswith(f"commit: {hub.url}/{REPO}/commit/")
    assert out[-1] == f"to load it: import lambdaresnet_zoo, timm; {LOAD}"
    for name in FILES - {"README.md"}:
        assert files[name] == (folder / name).read_bytes()
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    card.validate()  # by the hub, as it does
    assert card.data.license == "mit" and card.data.library_name == "timm"
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in card.text
    assert card.text.index("import lambdaresnet_zoo") < card.text.index("import timm")
    assert digest(folder / "model.safetensors") in card.text
    published = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert torch.equal(logits(published), logits(timm.create_model(f"local-dir:{folder}", pretrained=True)))
    assert published.pretrained_cfg["label_names"] == list("abcdefg")


def test_transformers_loads_what_is_published(hub, token, folder, command, monkeypatch):
    from transformers import AutoModelForImageClassification

    assert command("publish", folder, REPO)[0] == 0
    model = AutoModelForImageClassification.from_pretrained(REPO, cache_dir=hub.cache)
    with torch.inference_mode():
        found = model.eval()(torch.randn(2, 3, 96, 96, generator=torch.manual_seed(0))).logits
    assert torch.equal(found, logits(timm.create_model(f"local-dir:{folder}", pretrained=True)))


def test_a_checkpoint_at_once(hub, token, checkpoint, command):
    status, _, err = command("publish", checkpoint, REPO, "--private", "--license", "cc-by-4.0", "--dtype", "bfloat16")
    assert (status, err) == (0, [])
    assert hub.repos[REPO].private and hub.files(REPO).keys() == FILES
    reference = logits(timm.create_model("test_lambdaresnet", num_classes=7, checkpoint_path=str(checkpoint)))
    assert (
        logits(timm.create_model(f"hf-hub:{REPO}", pretrained=True)) - reference
    ).abs().max() < 0.05 * reference.max()


@pytest.mark.parametrize("source", ["timm/lambda_resnet26t.c1_in1k", "lambdaresnet26t.c1_in1k"])
def test_timms_weights_as_hub_would_hold_them(source, hub, token, command, tmp_path):
    """From timm's repository to one of ours: the configuration is the one in hub/, but for the digest."""
    theirs = perturbed("lambdaresnet26t")
    theirs.pretrained_cfg = timm.models.get_pretrained_cfg("lambda_resnet26t.c1_in1k").to_dict()
    timm.models.save_for_hf(theirs, tmp_path / "timm", safe_serialization=True)
    hub.add("timm/lambda_resnet26t.c1_in1k", {path.name: path for path in (tmp_path / "timm").iterdir()})
    status, _, err = command("publish", source, "me/lambdaresnet26t.c1_in1k")
    assert (status, err) == (0, [])
    files = hub.files("me/lambdaresnet26t.c1_in1k")
    weights = files["model.safetensors"]
    stored = Path(lambdaresnet_zoo.__file__).parents[1] / "hub" / "lambdaresnet26t.c1_in1k"
    config, wanted = json.loads(files["config.json"]), json.loads((stored / "config.json").read_text())
    assert config["lambdaresnet_zoo"].pop("sha256") == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert config == wanted
    assert files["lambdaresnet_zoo_remote.py"] == (stored / "lambdaresnet_zoo_remote.py").read_bytes()
    card = files["README.md"].decode()
    for text in ("79.126", "base_model: timm/lambda_resnet26t.c1_in1k", "Measured by this project: none"):
        assert text in card and text in (stored / "README.md").read_text()
    again = timm.create_model("hf-hub:me/lambdaresnet26t.c1_in1k", pretrained=True).eval()
    x = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        assert (again(x) - theirs(x)).abs().max() <= 1e-5


def test_a_folder_with_what_it_lacked(hub, token, checkpoint, command, tmp_path):
    """A licence that convert was not given; the weights stay as they are."""
    convert(str(checkpoint), tmp_path / "out", Options(data="photos of mine"))
    assert command("publish", tmp_path / "out", REPO, "--license", "mit")[0] == 0
    card = hub.files(REPO)["README.md"].decode()
    assert "license: mit" in card and "data: photos of mine" in card
    assert hub.files(REPO)["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_warm_start_says_so_wherever_it_goes(hub, token, command, tmp_path):
    save_file(timm.create_model("resnetrs50").state_dict(), tmp_path / "rs50.safetensors")
    convert(str(tmp_path / "rs50.safetensors"), tmp_path / "lambdaresnet50", Options(warm_start=True, license="mit"))
    convert(str(tmp_path / "lambdaresnet50"), tmp_path / "again", Options(dtype=torch.bfloat16))
    assert command("publish", tmp_path / "again", REPO)[0] == 0
    assert "This is no trained LambdaResNet" in hub.files(REPO)["README.md"].decode()
    card = (tmp_path / "again" / "README.md").read_text()
    (tmp_path / "again" / "README.md").write_text(card.replace("This is no trained", "This is a trained"))
    one_line(command("publish", tmp_path / "again", REPO), "has lost 'This is no trained LambdaResNet")


def test_a_repository_whose_weights_were_exchanged(hub, folder, checkpoint, command):
    """Its configuration records the digest of others."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("you/swapped", {**files, "model.safetensors": checkpoint.read_bytes()})
    with pytest.raises(RuntimeError, match=f"is {digest(checkpoint)}, not {digest(folder / 'model.safetensors')}"):
        timm.create_model("hf-hub:you/swapped", pretrained=True)
    one_line(command("convert", "you/swapped", folder.parent / "new"), digest(checkpoint))


def test_a_dry_run_asks_nothing(hub, folder, command):
    status, out, err = command("publish", folder, REPO, "--dry-run", "--private")
    assert (status, err) == (0, [])
    assert out[0] == f"would upload to {hub.url}/{REPO} (private):"
    assert {line.split()[0] for line in out[1:-2]} == FILES
    assert "nothing was uploaded" in out[-2] and "without --dry-run" in out[-2]
    assert out[-1] == f"to load it then: import lambdaresnet_zoo, timm; {LOAD}"
    assert hub.requests == [] and hub.repos == {}


def test_a_licence_that_the_hub_does_not_list_is_told_before_the_upload(hub, checkpoint, command):
    own = ("publish", checkpoint, REPO, "--dry-run", "--license")
    status, _, err = command(*own, "apache2.0")
    assert status == 0 and len(err) == 1
    assert err[0].startswith("warning: the Hub lists no licence 'apache2.0'") and "did you mean apache-2.0" in err[0]
    for license in ("openrail++", "other", "llama3.1"):
        assert command(*own, license)[::2] == (0, [])
    _, _, err = command("publish", checkpoint, REPO, "--license", "none")  # and no token
    assert [line.split(":")[0] for line in err] == ["warning", "error"]


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_uploaded(self, hub):
        yield
        assert not any(repo.commits for repo in hub.repos.values())

    def test_without_a_token(self, folder, command):
        status, _, err = command("publish", folder, REPO)
        assert status == 2 and len(err) == 1
        assert REPO in err[0] and "hf auth login" in err[0]

    def test_the_hub_fails(self, hub, token, folder, command):
        hub.fail(500, "/api/repos/create")
        status, _, err = command("publish", folder, REPO)
        assert status == 2 and len(err) == 1 and "try again later" in err[0]

    def test_names(self, folder, command):
        one_line(command("publish", folder, "tiny"), "'tiny' is no name of a repository")
        one_line(command("publish", folder, "me/ti ny"), "is no name of a repository")
        one_line(command("publish", "nothing", REPO), "nothing: no such file or folder")

    def test_no_licence(self, checkpoint, command, tmp_path):
        one_line(command("publish", checkpoint, REPO), checkpoint, "states no licence", "--license")
        convert(str(checkpoint), tmp_path / "out")
        one_line(command("publish", tmp_path / "out", REPO), tmp_path / "out", "states no licence")

    @pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
    def test_a_file_is_missing(self, name, folder, command):
        (folder / name).unlink()
        one_line(command("publish", folder, REPO), folder, f"has no {name}")

    def test_a_configuration_is_missing(self, folder, command):
        (folder / "config.json").unlink()
        one_line(command("publish", folder, REPO), folder, "has no config.json")

    def test_other_weights_than_were_converted(self, folder, command):
        content = bytearray((folder / "model.safetensors").read_bytes())
        known = digest(folder / "model.safetensors")
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        one_line(command("publish", folder, REPO), "model.safetensors", known, digest(folder / "model.safetensors"))

    @pytest.mark.parametrize(
        ("old", "new", "part"),
        [
            ("license: mit", "license: [", "no valid YAML"),
            ("import lambdaresnet_zoo", "", "import lambdaresnet_zoo"),
            ("library_name: timm", "library_name: other", "library_name"),
            ("license: mit", "license: apache-2.0", "make them agree"),
            ("license: mit", "license: banana split", "no identifier"),
        ],
    )
    def test_a_card_that_was_spoilt(self, old, new, part, folder, command):
        card = folder / "README.md"
        assert old in card.read_text()
        card.write_text(card.read_text().replace(old, new))
        one_line(command("publish", folder, REPO), "README.md", part)

    def test_a_configuration_that_was_spoilt(self, folder, command):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architecture": "lambdaresnet50"}))
        one_line(command("publish", folder, REPO), "does not load in timm")
        (folder / "config.json").write_text("{")
        one_line(command("publish", folder, REPO), "config.json")
        (folder / "config.json").write_text(json.dumps({**config, "lambdaresnet_zoo": {}}))
        one_line(command("publish", folder, REPO), "config.json", "states no sha256")
        (folder / "config.json").write_text(json.dumps({**config, "model_args": {"num_classes": 7}}))
        one_line(command("publish", folder, REPO), "num_classes", "transformers")

    def test_code_that_was_spoilt(self, folder, command):
        """Readers would run it."""
        (folder / "lambdaresnet_zoo_remote.py").write_text("import os")
        one_line(command("publish", folder, REPO), "lambdaresnet_zoo_remote.py", "not what convert writes")

    def test_a_layer_is_no_model(self, command, tmp_path):
        torch.save(LambdaLayer(8, query_depth=2, num_heads=2, scope=3).state_dict(), tmp_path / "layer.pth")
        one_line(command("publish", tmp_path / "layer.pth", REPO), "single lambda layer")
