"""The weights that ship: digests, loading by timm's ways, and the figures that are claimed for them."""

import os
from pathlib import Path

import pytest
import timm
import torch

from lambdaresnet_zoo.weights import cards, documents, shipped
from lambdaresnet_zoo.weights.files import read_rows

DATA = Path(os.environ.get("LAMBDARESNET_ZOO_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
NAME = "lambdaresnet32px.cifar10"


def test_every_file_has_its_digest_and_is_small():
    lines = shipped.DIGESTS.read_text().splitlines()
    assert [line.split()[1] for line in lines] == [f"{name}.safetensors" for name in shipped.shipped_names()]
    for name in shipped.shipped_names():
        shipped.verify_shipped(shipped.shipped_file(name))
        assert Path(shipped.shipped_file(name)).stat().st_size < 15e6


@pytest.mark.parametrize("name", [NAME, NAME.split(".")[0]])
def test_loads_without_network(name, monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = timm.create_model(name, pretrained=True)
    assert model.pretrained_cfg["tag"] == "cifar10"
    assert model.pretrained_cfg["label_names"][3] == "cat"


def test_loads_with_other_heads_channels_and_as_features():
    x = torch.randn(2, 1, 32, 32)
    assert timm.create_model(NAME, pretrained=True, in_chans=1, num_classes=5)(x).shape == (2, 5)
    assert len(timm.create_model(NAME, pretrained=True, in_chans=1, features_only=True)(x)) == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused_with_both_digests(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "DIGESTS", tmp_path / "SHA256SUMS")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"weights")
    shipped.write_digests()
    shipped.verify_shipped(str(path))
    known = shipped.digest(path)
    if damage == "remove":
        path.unlink()
        with pytest.raises(RuntimeError, match=r"x\.safetensors is missing: reinstall"):
            shipped.verify_shipped(str(path))
        return
    path.write_bytes(b"Weights" if damage == "flip" else b"weig")
    with pytest.raises(RuntimeError, match=f"is {shipped.digest(path)}, not {known}"):
        shipped.verify_shipped(str(path))


def test_creating_the_model_checks_the_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "DIGESTS", tmp_path / "SHA256SUMS")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {NAME}.safetensors\n")
    with pytest.raises(RuntimeError, match="is damaged"):
        timm.create_model(NAME, pretrained=True)
    timm.create_model(NAME, pretrained=False)


def test_files_elsewhere_are_not_its_business(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    shipped.verify_shipped(str(tmp_path / "mine.safetensors"))
    shipped.verify_shipped(None)


def test_the_cards_figures_are_of_the_data_that_it_names():
    """As the Hub reads them: two sets of images are two results."""
    from huggingface_hub import ModelCard

    (row,) = read_rows(cards.CIFAR10)
    results = ModelCard(cards.known_card(*NAME.split(".")).render()).data.eval_results
    found = {result.dataset_name: result.metric_value for result in results}
    assert found == {
        "CIFAR-10, JPEG re-encoding": float(row["top1"]),
        "CIFAR-10, original pixels": float(row["top1_lossless"]),
    }


def test_generated_files_are_up_to_date():
    """Else: python scripts/documents.py."""
    for path, text in documents.documents().items():
        assert path.read_text() == text, path


@pytest.mark.slow
@pytest.mark.parametrize(("column", "folder"), [("top1", "cifar10-jpeg"), ("top1_lossless", "cifar10-lossless-subset")])
def test_the_shipped_file_gives_the_recorded_figure(column, folder, command, tmp_path):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {DATA / folder}; set LAMBDARESNET_ZOO_DATA to a folder that holds it")
    row = next(row for row in read_rows(cards.CIFAR10) if row["model"] == "lambdaresnet32px")
    options = ("--device", "cpu", "--workers", 1, "--results", tmp_path / "row.csv")
    assert command("validate", "--model", NAME, "--data", DATA / folder, *options)[0] == 0
    found = read_rows(tmp_path / "row.csv")[0]
    assert found["count"] == ("10000" if column == "top1" else "1017")
    assert float(found["top1"]) == pytest.approx(float(row[column]), abs=0.005)
    model = timm.create_model(NAME, pretrained=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(row["params"])
