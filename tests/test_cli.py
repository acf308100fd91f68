import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import one_line
from PIL import Image

import lambdaresnet_zoo
from lambdaresnet_zoo.cli import main
from lambdaresnet_zoo.layers.plan import COSTS
from lambdaresnet_zoo.tasks import predict as task

ROOT = Path(lambdaresnet_zoo.__file__).parent.parent


@pytest.fixture
def run(checkpoint, command):
    """Run `predict` with the tiny model; returns exit status, lines of stdout, lines of stderr."""

    def call(*arguments, own=("--model", "test_lambdaresnet", "--checkpoint", str(checkpoint))):
        return command("predict", *own, *arguments)

    return call


def test_text(run, draw, expected):
    paths = [draw(f"{name}.png", seed) for seed, name in enumerate("ba")]
    status, out, err = run(*paths, "--topk", 2)
    assert (status, err) == (0, [])
    wanted = []
    for path in sorted(paths):
        values, indices = expected(path).topk(2)
        wanted += [str(path), *(f"  {100 * v:6.2f}%  {i}" for v, i in zip(values, indices, strict=True))]
    assert out == wanted


def test_json(run, draw, expected):
    paths = [draw(f"{seed}.png", seed) for seed in range(3)]
    status, out, err = run(paths[0].parent, "--json", "--topk", 3, "--batch-size", 2)
    assert (status, err) == (0, [])
    rows = [json.loads(line) for line in out]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        values, indices = expected(path).topk(3)
        assert [p["index"] for p in row["predictions"]] == indices.tolist()
        assert [p["probability"] for p in row["predictions"]] == pytest.approx(values.tolist(), abs=1e-6)
        assert [set(p) for p in row["predictions"]] == [{"label", "index", "probability"}] * 3
        assert [p["label"] for p in row["predictions"]] == [str(i) for i in indices.tolist()]


def test_topk_above_the_classes_gives_all(run, draw):
    assert len(run(draw("a.png"), "--topk", 100)[1]) == 1 + 7


@pytest.mark.parametrize("option", ["--topk", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_counts_are_at_least_1(run, draw, option, value):
    status, out, err = run(draw("a.png"), f"{option}={value}")
    assert status == 2 and not out and "at least 1" in err[-1]


def test_nothing_to_predict_is_wrong_usage(run):
    status, out, err = run()
    assert status == 2 and not out and "--demo" in err[-1]


@pytest.fixture
def broken(tmp_path, draw):
    """Arguments that give no image, with the word that the line about each holds."""
    draw("good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    words = {
        "truncated.jpg": "truncated",
        "text.png": "not an image",
        "zero.png": "not an image",
        "missing.jpg": "no such file",
        "empty": "without images",
        "*.webp": "no image",
    }
    return {str(tmp_path / name): word for name, word in words.items()}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_broken_images_are_named_and_the_others_predicted(run, draw, broken, options):
    good = [str(draw(name)) for name in ("a.png", "z.png")]
    status, out, err = run(*broken, *good, "--batch-size", 2, *options)
    assert status == 1
    assert len(err) == len(broken)
    for path, word in broken.items():
        (line,) = [line for line in err if line.startswith(f"error: {path}: ")]
        assert word in line
    if options:
        rows = {row["path"]: row for row in map(json.loads, out)}
        assert rows.keys() == {*broken, *good}
        assert {path for path, row in rows.items() if "error" in row} == set(broken)
        assert all(len(rows[path]["predictions"]) == 5 for path in good)
    else:
        assert [line for line in out if not line.startswith(" ")] == good


def test_decompression_bomb(run, draw, monkeypatch):
    large, small = draw("large.png"), draw("small.png")
    Image.new("RGB", (400, 100)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)  # an error from twice that
    status, out, err = run(large, small)
    assert status == 1 and len(err) == 1
    assert str(large) in err[0] and "too many pixels" in err[0]
    assert out[0] == str(small)


def test_unknown_model(run, draw):
    path = draw("a.png")
    one_line(run(path, own=("--model", "lambdaresnet5O")), "'lambdaresnet5O'", "did you mean", "lambdaresnet50,")
    one_line(run(path, own=("--model", "lambdaresnet50.no_tag")), "did you mean", "lambdaresnet50")
    one_line(run(path, own=("--model", "zzz")), "'zzz'", "list_models")
    one_line(run(path, own=("--model", "resnet18")), "unknown model")


def test_model_without_weights(run, draw, monkeypatch):
    from lambdaresnet_zoo.tasks import loading

    monkeypatch.setattr(loading, "list_models", lambda pretrained=False: ["one", "two"] if pretrained else OWN)
    outcome = run(draw("a.png"), own=("--model", "lambdaresnet152"))
    one_line(outcome, "'lambdaresnet152'", "no public weights", "one, two", "--checkpoint")


OWN = lambdaresnet_zoo.list_models()


def test_checkpoint_problems(run, draw, tmp_path, checkpoint):
    path = draw("a.png")
    own = ("--model", "test_lambdaresnet", "--checkpoint")
    one_line(run(path, own=(*own, str(tmp_path / "no.pth"))), "no.pth", "no such file")
    one_line(run(path, own=(*own, str(path))), "a.png", "neither")
    one_line(run(path, own=(*own, str(tmp_path))), "is a folder")
    one_line(run(path, own=("--model", "lambdaresnet32px", "--checkpoint", str(checkpoint))), "do not fit", "--model")
    one_line(run(path, own=("--model", "local-dir:x", "--checkpoint", str(checkpoint))), "own weights")


@pytest.mark.parametrize("device", ["warp", "cuda:99", "meta", "cuda:x"])
def test_bad_device(run, draw, device):
    one_line(run(draw("a.png"), "--device", device), f"'{device}'")


def test_out_of_memory(run, draw, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("of many\nlines")

    monkeypatch.setattr(task, "_top", fail)
    one_line(run(draw("a.png")), "--batch-size")


def test_demo_without_scikit_image(run, monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name.startswith("skimage"):
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    one_line(run("--demo"), 'pip install "lambdaresnet-zoo[demo]"')


def test_demo_with_the_default_model_is_a_cat(run):
    """The weights that ship with the package, on a photograph of none of their sets."""
    status, out, _ = run("--demo", "--json", own=())
    assert status == 0
    assert json.loads(out[0])["predictions"][0]["label"] == "cat"


def test_progress(run, draw, monkeypatch):
    for number in range(9):
        path = draw(f"{number}.png", number)
    images = path.parent
    assert run(images)[2] == []  # stderr is no terminal
    assert any("9/9" in line for line in run(images, "--progress")[2])
    assert run(images / "1.png", "--progress")[2] == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, out, err = run(images, "--json")
    assert any("9/9" in line for line in err)
    assert len([json.loads(line) for line in out]) == 9


def test_interrupt(run, draw, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "_top", interrupt)
    status, _, err = run(draw("a.png"))
    assert status == 130 and err == []


def test_name_that_the_terminal_cannot_show(draw, checkpoint, monkeypatch):
    import io

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    own = ["--model", "test_lambdaresnet", "--checkpoint", str(checkpoint)]
    assert main(["predict", *own, str(draw("ß.png"))]) == 0
    assert rb"\xdf.png" in stream.buffer.getvalue()


def test_version_and_help(capsys):
    for option, text in {"--version": lambdaresnet_zoo.__version__, "--help": "predict"}.items():
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0 and text in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


def test_process(draw, checkpoint):
    """As a user runs it: a good image and a missing one, the streams apart."""
    path = draw("a.png")
    own = ["--model", "test_lambdaresnet", "--checkpoint", str(checkpoint)]
    command = [sys.executable, "-m", "lambdaresnet_zoo", "predict", *own, str(path), "no.png"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[0] == str(path) and len(ended.stdout.splitlines()) == 6
    assert ended.stderr.startswith("error: no.png: ") and ended.stderr.count("\n") == 1


def test_broken_pipe_is_no_traceback(draw, checkpoint):
    own = ["--model", "test_lambdaresnet", "--checkpoint", str(checkpoint)]
    command = [sys.executable, "-m", "lambdaresnet_zoo", "predict", *own, str(draw("a.png"))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def _costs(without="", **changed):
    """The package's, where those of a CPU lack a coefficient or are changed."""
    costs = json.loads(COSTS.read_text())
    costs["cpu"]["forward"]["query"].pop(without, None)
    return json.dumps(costs | {"cpu": costs["cpu"] | changed})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("IMPL", "fast", "LAMBDARESNET_ZOO_IMPL must be one of"),
        ("MEMORY", "lots", "LAMBDARESNET_ZOO_MEMORY must be a number of MiB of at least 0, got 'lots'"),
        ("MEMORY", "-4", "LAMBDARESNET_ZOO_MEMORY must be a number of MiB of at least 0, got '-4'"),
        ("MEMORY", "nan", "LAMBDARESNET_ZOO_MEMORY must be a number of MiB of at least 0, got 'nan'"),
        ("COSTS", "no such file", "LAMBDARESNET_ZOO_COSTS no such file cannot be read"),
        ("COSTS", "[]", "LAMBDARESNET_ZOO_COSTS costs.json is no cost model"),
        ("COSTS", '{"other": {}}', "LAMBDARESNET_ZOO_COSTS costs.json is no cost model"),
        ("COSTS", _costs("window"), "LAMBDARESNET_ZOO_COSTS costs.json lacks window of query, forward, cpu; unset it"),
        ("COSTS", _costs(forward=3), "LAMBDARESNET_ZOO_COSTS costs.json is no cost model"),
        ("COSTS", _costs(training={"query": {"call": None}}), "LAMBDARESNET_ZOO_COSTS costs.json is no cost model"),
    ],
)
def test_an_environment_that_no_plan_can_use_is_one_line(command, monkeypatch, tmp_path, name, value, told):
    if value[0] in "[{":
        monkeypatch.chdir(tmp_path)
        Path("costs.json").write_text(value)
        value = "costs.json"
    monkeypatch.setenv(f"LAMBDARESNET_ZOO_{name}", value)
    status, out, err = command("published")
    assert status == 2 and out == [] and len(err) == 1 and err[0].startswith(f"error: {told}")


def test_a_kernel_is_forced_on_what_has_none(command, monkeypatch, draw):
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "kernel")
    one_line(command("predict", draw("a.png"), "--device", "cpu"), "order='kernel' cannot be used", "cpu")
    assert command("published", "lambdaresnet50")[0] == 0
