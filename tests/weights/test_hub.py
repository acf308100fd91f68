"""The Hub, through huggingface_hub's own client, against a hub on the loopback interface."""

from lambdaresnet_zoo.weights import hub as zoo


def test_up_and_down(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    url = zoo.upload(folder, "me/model")
    print(url)
    path = zoo.fetch("me/model")
    assert path.read_bytes() == b"weights" * 1000
    for r in hub.requests:
        print(r.method, r.path)
    url2 = zoo.upload(folder, "me/model")
    print(url, url2)
    with hub.gone():
        assert zoo.fetch("me/model") == path
