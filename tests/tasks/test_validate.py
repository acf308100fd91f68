"""`validate`: its digits, alone and in several processes, on every form of data."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import one_line
from validation_sets import COUNT, NAMES, counts, pictures, row_of, timm_figures, write

from lambdaresnet_zoo.tasks import validate as validation
from lambdaresnet_zoo.tasks import validate_run, validation_report
from lambdaresnet_zoo.weights.cards import CIFAR10
from lambdaresnet_zoo.weights.files import read_rows

NAME = "test_lambdaresnet"
DATA = Path(os.environ.get("LAMBDARESNET_ZOO_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
KINDS = ["folder", "tar", "tars", "parquet", "webdataset", "shards", "shard"]


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Writes each form once; returns what --data is told."""
    root, known = tmp_path_factory.mktemp("sets"), {}

    def get(kind):
        if kind not in known:
            known[kind] = write(kind, root)
        return known[kind]

    return get


@pytest.fixture
def validate(command, checkpoint, tmp_path):
    """Run the command on the small model; returns the outcome and the row, if any was written."""

    def run(*arguments, weights=checkpoint):
        path = tmp_path / "rows.csv"
        outcome = command(
            *("validate", "--model", NAME, "--checkpoint", weights, "--workers", 0, "--batch-size", 4),
            *("--device", "cpu", "--results", path, *arguments),
        )
        return outcome, row_of(path) if path.exists() else None

    return run


def test_batch_norms_are_folded_where_that_is_asked(validate, sets, monkeypatch):
    networks, step = [], validation._Loop.step

    def recorded(loop, *given):
        networks.append(loop.network)
        step(loop, *given)

    monkeypatch.setattr(validation._Loop, "step", recorded)
    for options, folded in (((), False), (("--reparam",), True)):
        (status, *_), _ = validate("--data", sets("folder"), *options)
        assert status == 0
        assert isinstance(networks[-1].stem.conv1.bn, torch.nn.BatchNorm2d) is not folded


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--batch-size", "5"], {"batch_size": 5}),
        (["--img-size", "64", "--crop-pct", "0.7", "--interpolation", "bilinear"],
         {"img_size": 64, "crop_pct": 0.7, "interpolation": "bilinear"}),
        (["--crop-mode", "squash"], {"crop_mode": "squash"}),
        (["--channels-last"], {"channels_last": True}),
        (["--reparam"], {}),
        (["--amp", "--amp-dtype", "bfloat16"], {"amp": torch.bfloat16}),
        (["--amp"], {"amp": torch.float16}),
        (["--torchcompile", "eager"], {}),
        pytest.param(["--torchcompile"], {}, marks=pytest.mark.slow),
    ],
    ids=["plain", "batch", "preprocessing", "squash", "channels_last", "reparam", "bfloat16", "float16", "compile",
         "inductor"],
)  # fmt: skip
def test_digits_are_those_of_timms_own_loop(validate, sets, checkpoint, options, settings):
    """With seven classes and random weights, other preprocessing gives other figures."""
    (status, out, err), row = validate("--data", sets("folder"), *options)
    assert status == 0 and not any("error" in line for line in err), err  # torch's compiler has remarks of its own
    *right, loss = timm_figures(NAME, checkpoint, sets("folder"), **{"batch_size": 4, **settings})
    assert list(counts(row)) == right and int(row["count"]) == COUNT
    assert float(row["loss"]) == pytest.approx(loss, abs=1e-4)
    assert row["img_size"] == str(settings.get("img_size", 96)) and row["status"] == "complete"
    assert row["crop_pct"] == str(settings.get("crop_pct", row["crop_pct"]))
    assert any(f"top-1        {row['top1']} %" in line for line in out)


def test_other_preprocessing_is_another_figure(validate, sets):
    losses = {validate("--data", sets("folder"), *more)[1]["loss"] for more in ((), ("--crop-pct", "0.5"))}
    assert len(losses) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_the_data_gives_the_same(validate, sets, tmp_path, kind, workers):
    if workers and kind in ("tars", "shard", "shards"):
        pytest.skip("as tar and webdataset with workers")
    baseline = tmp_path / "baseline.csv"  # of its own: a finished row of the same file would not be measured again
    assert validate("--data", sets("folder"), "--results", baseline)[0][0] == 0
    expected = row_of(baseline)
    (status, out, err), row = validate("--data", sets(kind), "--workers", workers)
    assert status == 0 and err == [] and not any("finished in" in line for line in out)
    assert counts(row) == counts(expected) and row["count"] == str(COUNT)
    assert float(row["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-5)


@pytest.mark.parametrize("kind", ["hfds", "hfids", "wds", "torch"])
def test_timms_names_of_data(validate, sets, kind):
    _, expected = validate("--data", sets("folder"))
    named = {
        "hfds": ["--dataset", f"hfds/{sets('parquet')}"],
        "hfids": ["--dataset", f"hfids/{sets('parquet')}", "--split", "test"],
        "wds": ["--dataset", "wds/", "--data", sets("webdataset"), "--split", "test"],
        "torch": ["--dataset", "torch/image_folder", "--data", sets("folder")],
    }
    (status, _, err), row = validate(*named[kind])
    assert status == 0 and err == []
    assert counts(row) == counts(expected) and row["count"] == str(COUNT)


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
VALIDATE = ("-m", "lambdaresnet_zoo", "validate", "--model", NAME, "--device", "cpu")


def run_torch(*command):
    return subprocess.run(
        [*TORCHRUN, *command], env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def torchrun(*arguments):
    return run_torch(*VALIDATE, *map(str, arguments))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "webdataset", "shard", "hfids"])
def test_two_processes_count_each_image_once(validate, sets, checkpoint, tmp_path, kind):
    """23 images by batches of 4; three shards or one, two processes with two workers each for webdataset."""
    _, expected = validate("--data", sets("folder"))
    workers = 2 if kind in ("webdataset", "shard") else 0
    data = ["--dataset", f"hfids/{sets('parquet')}"] if kind == "hfids" else ["--data", sets(kind)]
    results, classes = tmp_path / "two.csv", tmp_path / "classes.csv"
    done = torchrun(
        "--checkpoint", checkpoint, *data, "--batch-size", 4, "--workers", workers,
        "--results", results, "--per-class", classes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = row_of(results)
    assert len(read_rows(results)) == 1 and row["processes"] == "2" and row["count"] == str(COUNT)
    assert counts(row) == counts(expected)
    assert float(row["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-5)
    labels = [label for label, _ in pictures()]
    assert [int(line["count"]) for line in read_rows(classes)] == [labels.count(index) for index in range(7)]
    assert done.stdout.count("top-1") == 1


@pytest.mark.slow
def test_processes_wait_for_each_other(tmp_path):
    """The one with all the shards may take longer than torch.distributed waits of itself, 2 s in this test."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import datetime, functools, time, torch\n"
        "from lambdaresnet_zoo.tasks.processes import gather, take_part\n"
        "start = torch.distributed.init_process_group\n"
        "soon = datetime.timedelta(seconds=2)\n"
        "torch.distributed.init_process_group = functools.partial(start, timeout=soon)\n"
        "with take_part('cpu') as (device, process, processes):\n"
        "    time.sleep(6 * process)\n"
        "    print(gather(process))\n"
    )
    done = run_torch(str(script))
    assert done.returncode == 0 and done.stdout.count("[0, 1]") == 2, done.stderr


@pytest.mark.slow
def test_what_stops_all_processes_is_told_once(checkpoint, tmp_path):
    done = torchrun("--checkpoint", checkpoint, "--data", tmp_path / "nowhere")
    assert done.returncode and done.stderr.count("no such file or folder") == 1 and not done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_interrupting_prints_what_was_measured(checkpoint, tmp_path, processes):
    """torchrun has an exit status of its own, 1, and tells the signal itself."""
    many = list(pictures()) * 120
    results = tmp_path / "rows.csv"
    process = subprocess.Popen(
        [*(TORCHRUN if processes > 1 else [sys.executable]), *VALIDATE, "--checkpoint", str(checkpoint),
         "--data", str(write("folder", tmp_path, many)), "--batch-size", "2", "--workers", "1", "--progress",
         "--results", str(results)],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )  # fmt: skip
    shown = ""
    while "top-1" not in shown:  # the running figure is in the bar
        character = process.stderr.read(1)
        assert character, shown
        shown += character
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if processes == 1 else 1), err
    assert out.count("[partial]") == 1 and ("Traceback" not in err or processes > 1)
    assert ("the part of the first of 2 processes alone" in out) == (processes > 1)
    row = row_of(results)
    assert row["status"] == "partial" and 0 < int(row["count"]) < len(many)


def test_the_bar_shows_the_running_figure(validate, sets, monkeypatch):
    from lambdaresnet_zoo.tasks import validate as loop

    monkeypatch.setattr(loop, "REFRESH", 0)
    (_, _, err), _ = validate("--data", sets("folder"), "--progress")
    assert f"{COUNT}/{COUNT}" in err[-1] and "top-1" in err[-1]


def test_per_class_figures_add_up(validate, sets, tmp_path):
    path = tmp_path / "classes.csv"
    (status, _, _), row = validate("--data", sets("folder"), "--per-class", path)
    lines = read_rows(path)
    assert status == 0 and [line["name"] for line in lines] == list(NAMES)
    assert sum(int(line["count"]) for line in lines) == COUNT
    right = sum(float(line["top1"]) * int(line["count"]) / 100 for line in lines if line["top1"])
    assert round(right) == counts(row)[0]


@pytest.fixture
def figure(monkeypatch):
    """Publishes a figure for the small model."""

    def publish(top1):
        found = {"top1": str(top1), "source": "a paper", "note": ""}
        monkeypatch.setattr(validate_run, "has_figure", lambda *_: True)
        monkeypatch.setattr(validate_run, "reference", lambda *_: found)

    return publish


def test_a_miss_of_the_published_figure_is_an_exit_status(command, checkpoint, sets, figure, validate, monkeypatch):
    right = counts(validate("--data", sets("folder"))[1])[0]
    figure(round(100 * right / COUNT + 0.2, 4))
    # Own weights have no published figure; those of a model's name have.
    load = validate_run.load_model
    monkeypatch.setattr(validate_run, "load_model", lambda name, _, device, ema: load(name, checkpoint, device))
    base = ("validate", "--model", NAME, "--data", sets("folder"), "--workers", 0, "--device", "cpu", "--tolerance")
    status, out, err = command(*base, 0.3)
    assert status == 0 and err == [] and any("a paper" in line for line in out)
    assert any(line.split() == ["difference", "-0.2000"] for line in out)
    status, _, err = command(*base, 0.1)
    assert status == 1 and "missed" in err[0] and "-0.2000" in err[0]


def test_whose_figure_it_is():
    """Weights of one's own are held against the paper's figures, never against those of public weights."""
    assert validate_run._weights("lambdaresnet26t", validate_run.Options("lambdaresnet26t")) == (
        "lambdaresnet26t",
        "c1_in1k",
    )
    own = validate_run.Options("lambdaresnet26t", checkpoint="mine.pth")
    assert validate_run._weights("lambdaresnet26t", own) == ("lambdaresnet26t", "")
    assert validate_run._weights("local-dir:mine", validate_run.Options("local-dir:mine")) == ("", "")


def test_a_backend_that_torch_does_not_have(validate, sets):
    one_line(validate("--data", sets("folder"), "--torchcompile", "nosuch")[0], "--torchcompile nosuch", "inductor")


def test_tolerance_without_a_figure_is_refused(validate, sets):
    one_line(validate("--data", sets("folder"), "--tolerance", "0.1")[0], NAME, "--tolerance", "has none")


@pytest.mark.slow
def test_the_shipped_weights_give_the_recorded_figure(command, tmp_path):
    if not (DATA / "cifar10-jpeg").is_dir():
        pytest.skip(f"no {DATA / 'cifar10-jpeg'}; set LAMBDARESNET_ZOO_DATA to a folder that holds it")
    path = tmp_path / "rows.json"
    status, out, err = command(
        *("validate", "--model", "lambdaresnet32px.cifar10", "--data", DATA / "cifar10-jpeg", "--workers", 0),
        *("--tolerance", 0, "--results", path),
    )
    assert status == 0 and err == [], err
    row = validation_report.Results(str(path)).rows[0]
    (recorded,) = read_rows(CIFAR10)
    assert counts(row)[0] == round(100 * float(recorded["top1"])) and row["count"] == 10000
    assert row["difference"] == "+0.0000" and row["published_top1"] == recorded["top1"] and row["dataset"] == "cifar10"
    assert any("cifar10.csv" in line for line in out)


def test_a_rerun_skips_what_is_finished(command, checkpoint, sets, tmp_path, monkeypatch):
    calls = []
    measure = validate_run.measure
    monkeypatch.setattr(validate_run, "measure", lambda *a, **k: calls.append(1) or measure(*a, **k))
    load = validate_run.load_model
    monkeypatch.setattr(validate_run, "load_model", lambda name, _, device, ema: load(NAME, checkpoint, device))
    for suffix in ("csv", "json"):
        calls.clear()
        path = tmp_path / f"rows.{suffix}"
        base = ("validate", "--model", "lambdaresnet*t*.c1_in1k", "--data", sets("folder"), "--workers", 0,
                "--device", "cpu", "--results", path)  # fmt: skip
        assert command(*base)[0] == 0 and len(calls) == 2
        rows = validation_report.Results(str(path)).rows
        assert [row["model"] for row in rows] == ["lambdaresnet26rpt_256.c1_in1k", "lambdaresnet26t.c1_in1k"]
        status, out, _ = command(*base)
        assert status == 0 and len(calls) == 2 and "finished in" in out[0]
        assert command(*base, "--crop-pct", "0.5")[0] == 0 and len(calls) == 4
        results = validation_report.Results(str(path))
        results.add(results.rows[0] | {"status": "partial"})
        assert command(*base)[0] == 0 and len(calls) == 5
        rows = validation_report.Results(str(path)).rows
        assert len(rows) == 4 and {row["status"] for row in rows} == {"complete"}


def test_one_failing_model_does_not_stop_the_others(command, checkpoint, sets, monkeypatch):
    from lambdaresnet_zoo.errors import UserError

    load = validate_run.load_model

    def broken(name, _, device, ema):
        if "rpt" in name:
            raise UserError("no network")
        return load(NAME, checkpoint, device)

    monkeypatch.setattr(validate_run, "load_model", broken)
    status, out, err = command(
        *("validate", "--model", "lambdaresnet26*", "--data", sets("folder"), "--workers", 0, "--device", "cpu")
    )
    assert status == 1 and err == ["error: lambdaresnet26rpt_256.c1_in1k: no network"]
    assert out[0].startswith("lambdaresnet26t.c1_in1k on ")


def test_the_script_is_the_command():
    script = Path(__file__).parents[2] / "scripts" / "validate_imagenet.py"
    start = time.time()
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--tolerance" in done.stdout and time.time() - start < 60
