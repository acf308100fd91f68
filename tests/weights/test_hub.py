"""The Hub through huggingface_hub's own client, against a hub on the loopback interface.

Each failure must reach the user of the command as one clear line.
"""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

import lambdaresnet_zoo
from lambdaresnet_zoo.cli import main
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.weights import hub as zoo
from lambdaresnet_zoo.weights.hub import HubError, fetch, problem, upload

REPO = "me/model"
WEIGHTS = "model.safetensors"
TAGGED = "lambdaresnet26t.c1_in1k"
TAGGED_REPO = "timm/lambda_resnet26t.c1_in1k"


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A saved model."""
    path = tmp_path_factory.mktemp("saved") / "model"
    model = timm.create_model("test_lambdaresnet", num_classes=7, checkpoint_path=str(checkpoint))
    timm.models.save_for_hf(model, path, safe_serialization=True)
    return path


@pytest.fixture
def repo(hub, folder):
    """The saved model on the hub; its files, by name."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add(REPO, files)
    return files


@pytest.fixture
def run(hub, draw, capsys):
    """Run `predict`; exit status, lines of stdout, lines of stderr and of huggingface_hub's log."""
    path = draw("a.png")
    logged = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)

    def call(model=f"hf-hub:{REPO}"):
        capsys.readouterr()
        logged.clear()
        status = main(["predict", "--model", model, str(path)])
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err.splitlines() + logged

    yield call
    logger.removeHandler(handler)


def one_line(outcome, *parts):
    status, out, err = outcome
    assert status == 2 and out == [] and len(err) == 1, outcome
    assert err[0].startswith("error: model '")
    for part in parts:
        assert part in err[0], err[0]


def works(outcome):
    status, out, err = outcome
    assert status == 0 and len(out) == 6 and err == [], outcome


def pointers(hub):
    """What a reader of the cache finds."""
    return {path.name for path in hub.cache.glob("models--*/snapshots/*/*") if path.exists()}


def test_the_tests_ask_no_other_hub(hub):
    assert hub.url == huggingface_hub.constants.ENDPOINT
    assert huggingface_hub.get_token() is None


class TestUpload:
    @pytest.fixture(autouse=True)
    def token(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", hub.token)

    def test_what_is_uploaded_is_downloaded(self, hub, folder):
        address = upload(folder, REPO, message="why")
        commit = hub.repos[REPO].refs["main"]
        assert address == f"{hub.url}/{REPO}/commit/{commit}"
        assert hub.files(REPO) == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert not hub.repos[REPO].private
        steps = ["/api/repos/create", f"/api/models/{REPO}/preupload/main", f"/{REPO}.git/info/lfs/objects/batch"]
        steps += [f"/lfs/{hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}"]
        steps += [f"/api/models/{REPO}/commit/main"]
        assert [request.path for request in hub.requests if request.method in ("POST", "PUT")] == steps
        assert fetch(REPO).read_bytes() == (folder / WEIGHTS).read_bytes()
        assert "lambdaresnet-zoo" in hub.asked("GET", "/resolve/")[0].headers["user-agent"]

    def test_the_same_again_is_no_commit(self, hub, folder):
        assert upload(folder, REPO) == upload(folder, REPO)
        assert len(hub.repos[REPO].commits) == 2  # the first is empty

    def test_a_later_upload_is_another_commit(self, hub, folder, tmp_path):
        first = upload(folder, REPO)
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / WEIGHTS).write_bytes(b"other")
        second = upload(tmp_path / "new", REPO)
        assert fetch(REPO).read_bytes() == b"other"
        assert fetch(REPO, revision=first.rsplit("/")[-1]).read_bytes() == (folder / WEIGHTS).read_bytes()
        assert fetch(REPO, revision=second.rsplit("/")[-1]).read_bytes() == b"other"
        assert "config.json" in hub.files(REPO)

    def test_private(self, hub, folder):
        upload(folder, REPO, private=True)
        assert hub.repos[REPO].private
        upload(folder, REPO, private=True)

    def test_private_into_a_public_repository_is_refused(self, hub, folder):
        hub.add(REPO, {})
        with pytest.raises(HubError, match=f"'{REPO}' exists and is public: nothing was uploaded"):
            upload(folder, REPO, private=True)
        assert hub.files(REPO) == {}

    @pytest.mark.parametrize("given", [None, "hf_wrong"])
    def test_without_a_right_token(self, hub, folder, monkeypatch, given):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match=f"'{REPO}'.*log in with `hf auth login` or set HF_TOKEN") as caught:
            upload(folder, REPO, token=given)
        assert "\n" not in str(caught.value)
        assert not hub.repos

    def test_a_token_that_is_given(self, hub, folder, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        upload(folder, REPO, token=hub.token)

    def test_a_server_that_fails(self, hub, folder):
        hub.fail(500, "/commit/")
        with pytest.raises(HubError, match=f"'{REPO}'.*status 500"):
            upload(folder, REPO)
        assert hub.files(REPO) == {}
        hub.mend()
        upload(folder, REPO)
        assert WEIGHTS in hub.files(REPO)


class TestRevisions:
    def test_commits_tags_and_the_newest(self, hub):
        commits = [hub.add(REPO, {WEIGHTS: content}) for content in (b"one", b"two", b"three")]
        hub.tag(REPO, "v1", commits[0])
        assert fetch(REPO).read_bytes() == b"three"
        assert fetch(REPO, revision=commits[1]).read_bytes() == b"two"
        assert fetch(REPO, revision="v1").read_bytes() == b"one"

    def test_a_name_with_a_revision_loads_that(self, hub, repo, run):
        old = hub.add(REPO, {})
        hub.add(REPO, {WEIGHTS: b"no weights"})
        works(run(f"hf-hub:{REPO}@{old}"))
        assert all(f"/resolve/{old}/" in request.path for request in hub.requests)
        one_line(run(), "cannot be loaded")
        hub.tag(REPO, "good", old)
        works(run(f"hf-hub:{REPO}@good"))

    def test_missing(self, repo, run):
        one_line(run(f"hf-hub:{REPO}@v9"), f"'{REPO}' has no revision 'v9'")


class TestChoiceOfFile:
    def test_safetensors_first_then_pytorch_model(self, hub):
        hub.add(REPO, {"pytorch_model.bin": b"pickle"})
        assert fetch(REPO).read_bytes() == b"pickle"
        hub.add(REPO, {WEIGHTS: b"tensors"})
        assert fetch(REPO).read_bytes() == b"tensors"
        with hub.gone():
            assert fetch(REPO).read_bytes() == b"tensors"

    def test_no_other_pickle(self, hub):
        hub.add(REPO, {"model.pth": b"pickle", "weights.bin": b"pickle"})
        with pytest.raises(HubError, match=r"'me/model' has no model.safetensors and no pytorch_model.bin"):
            fetch(REPO)
        assert not hub.asked("GET")

    def test_a_named_file(self, hub):
        hub.add(REPO, {"a.bin": b"pickle", "b.bin": b"pickle", "b.safetensors": b"tensors", WEIGHTS: b"default"})
        assert fetch(REPO, "a.bin").read_bytes() == b"pickle"
        assert fetch(REPO, "b.bin").read_bytes() == b"tensors"
        assert fetch(REPO, "b.safetensors").read_bytes() == b"tensors"
        with pytest.raises(HubError, match=r"has no c\.safetensors"):
            fetch(REPO, "c.safetensors")

    def test_in_a_cfg(self, hub, repo, folder):
        hub.add("me/other", {"mine.safetensors": folder / WEIGHTS})
        overlay = {"hf_hub_id": "me/other", "hf_hub_filename": "mine.safetensors", "num_classes": 7}
        model = timm.create_model("test_lambdaresnet", pretrained=True, pretrained_cfg_overlay=overlay)
        assert {request.path for request in hub.requests} == {"/me/other/resolve/main/mine.safetensors"}
        saved = timm.models.load_state_dict(str(folder / WEIGHTS))
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())

    def test_another_cache(self, hub, repo, tmp_path):
        model = timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path / "mine")
        assert model.num_classes == 7
        assert len(list(tmp_path.glob("mine/models--*/blobs/*"))) == 2
        assert not hub.cache.exists()
        assert len(hub.asked("GET", WEIGHTS)) == 1


class TestCache:
    def test_is_enough_when_the_hub_is_gone(self, hub, repo, run):
        works(run())
        with hub.gone():
            works(run())
        assert len(hub.asked("GET", WEIGHTS)) == 1

    def test_without_it(self, hub, run):
        with hub.gone():
            one_line(run(), f"'{REPO}'", "connection", "try again", "local-dir:")
            one_line(run(TAGGED), f"'{TAGGED}'", f"'{TAGGED_REPO}'", "connection", "local-dir:")

    def test_only_a_pickle_is_in_it(self, hub):
        hub.add(REPO, {"pytorch_model.bin": b"pickle"})
        fetch(REPO)
        with hub.gone():
            assert fetch(REPO).read_bytes() == b"pickle"

    @pytest.mark.slow
    def test_offline(self, hub, repo, draw):
        """In a process of its own: huggingface_hub reads the setting as it is imported."""
        fetch(REPO)
        huggingface_hub.hf_hub_download(REPO, "config.json")
        before = len(hub.requests)
        models = [f"hf-hub:{REPO}", "hf-hub:me/other", TAGGED]
        ended = subprocess.run(
            [sys.executable, "-c", OFFLINE, str(draw("a.png")), *models],
            env={**os.environ, **hub.environment, "HF_HUB_OFFLINE": "1"},
            cwd=Path(lambdaresnet_zoo.__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert ended.stderr == ""
        cached, other, tagged = json.loads(ended.stdout)
        works(cached)
        one_line(other, "'me/other'", "not in the cache", "HF_HUB_OFFLINE", "local-dir:")
        one_line(tagged, f"'{TAGGED_REPO}'", "not in the cache", "HF_HUB_OFFLINE", "local-dir:")
        assert len(hub.requests) == before


OFFLINE = """
import contextlib, io, json, sys
from lambdaresnet_zoo.cli import main

outcomes = []
for model in sys.argv[2:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["predict", "--model", model, sys.argv[1]])
    outcomes.append((status, out.getvalue().splitlines(), err.getvalue().splitlines()))
print(json.dumps(outcomes))
"""


class TestAccess:
    @pytest.mark.parametrize("model", [f"hf-hub:{REPO}", TAGGED])
    def test_no_repository(self, run, model):
        repo = TAGGED_REPO if model == TAGGED else REPO
        one_line(run(model), f"'{repo}' does not exist or is private", "`hf auth login`", "HF_TOKEN")

    def test_private(self, hub, repo, run, monkeypatch):
        hub.add(REPO, {}, private=True)
        one_line(run(), f"'{REPO}' does not exist or is private", "`hf auth login`", "HF_TOKEN")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        one_line(run(), f"'{REPO}'", "does not accept the token", "`hf auth login`")
        assert not pointers(hub)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        works(run())

    @pytest.mark.parametrize(
        ("status", "code", "parts"),
        [
            (403, "GatedRepo", ["is gated", "ask for access at http", "`hf auth login`"]),
            (403, "", ["does not permit this"]),
            (429, "", ["too many requests", "try again later"]),
            (418, "", ["refuses", "418"]),
        ],
    )
    @pytest.mark.parametrize("match", ["config.json", WEIGHTS])
    def test_refused(self, hub, repo, run, status, code, parts, match):
        hub.fail(status, match, code=code)
        one_line(run(), f"'{REPO}'", *parts)

    def test_no_such_file(self, hub, repo, run):
        hub.add("me/config", {"config.json": repo["config.json"]})
        one_line(run("hf-hub:me/config"), "'me/config' has no model.safetensors and no pytorch_model.bin")
        hub.add("me/weights", {WEIGHTS: b"x"})
        one_line(run("hf-hub:me/weights"), "'me/weights' has no config.json")

    @pytest.mark.parametrize("name", ["a/b/c", "a b/c", "-x/y"])
    def test_no_name_of_a_repository(self, hub, run, name):
        one_line(run(f"hf-hub:{name}"), f"'{name}' is no name of a repository", "organisation/name")
        assert not hub.requests


class TestServerErrors:
    def test_for_a_while(self, hub, repo, run):
        """The client asks again by itself, or, in older versions, the user does."""
        hub.fail(500, times=2)
        outcomes = [run() for _ in range(3)]
        for outcome in outcomes[:2]:
            if outcome[0] != 0:
                one_line(outcome, f"'{REPO}'", "status 500", "try again later")
        works(outcomes[2])

    @pytest.mark.parametrize("match", ["config.json", WEIGHTS])
    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_for_good(self, hub, repo, run, match, method):
        hub.fail(503, match, method)
        one_line(run(), f"'{REPO}'", "status 503", "try again later")
        assert WEIGHTS not in pointers(hub)
        hub.mend()
        works(run())

    def test_while_the_file_is_in_the_cache(self, hub, repo, run):
        works(run())
        hub.fail(500)
        works(run())


class TestBrokenDownloads:
    def test_resumes_after_a_cut(self, hub, repo, run, monkeypatch):
        """In the same call, or, in older versions of the client, in the next."""
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is kept are whole chunks
        hub.cut(1000, WEIGHTS, times=1)
        outcome = run()
        if outcome[0] != 0:
            one_line(outcome, f"'{REPO}'", "connection", "try again")
            assert WEIGHTS not in pointers(hub)
            outcome = run()
        works(outcome)
        first, second = hub.asked("GET", WEIGHTS)
        assert "range" not in first.headers and second.headers["range"] == "bytes=1000-"
        with hub.gone():
            assert fetch(REPO).read_bytes() == repo[WEIGHTS]

    def test_cut_for_good(self, hub, repo, run):
        hub.cut(0, WEIGHTS)
        one_line(run(), f"'{REPO}'", "connection", "try again")
        assert WEIGHTS not in pointers(hub)
        with hub.gone():
            one_line(run(), f"'{REPO}'", "connection")
        hub.mend()
        works(run())

    @pytest.mark.parametrize("model", [f"hf-hub:{REPO}", TAGGED])
    def test_another_body_is_refused_with_both_digests(self, hub, repo, run, model):
        hub.add(TAGGED_REPO, {WEIGHTS: repo[WEIGHTS]})
        repo_id = TAGGED_REPO if model == TAGGED else REPO
        right = repo[WEIGHTS]
        wrong = right[:-1] + bytes([right[-1] ^ 1])
        hub.corrupt(WEIGHTS)
        digests = [hashlib.sha256(content).hexdigest() for content in (wrong, right)]
        text = "its sha256 is {}, not {}".format(*digests)
        for _ in range(2):
            one_line(run(model), f"'{repo_id}'", WEIGHTS, text, "try again")
            assert WEIGHTS not in pointers(hub)
            assert not list(hub.cache.glob(f"models--*/blobs/{digests[1]}"))
        assert len(hub.asked("GET", WEIGHTS)) == 2
        hub.mend()
        if model != TAGGED:  # there these are the weights of another network
            works(run(model))

    def test_nothing_is_loaded(self, hub, repo, monkeypatch):
        monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
        hub.corrupt(WEIGHTS)
        with pytest.raises(RuntimeError, match="is damaged") as caught:
            timm.create_model(f"hf-hub:{REPO}", pretrained=True)
        assert isinstance(caught.value, UserError)

    def test_a_file_that_is_in_git_itself(self, hub):
        hub.add(REPO, {"notes.txt": b"right"})
        assert fetch(REPO, "notes.txt").read_bytes() == b"right"
        hub.add(REPO, {"notes.txt": b"newer"})
        hub.corrupt()
        known = hashlib.sha1(b"blob 5\0newer").hexdigest()
        with pytest.raises(HubError, match=rf"notes\.txt is damaged: its git blob id is [0-9a-f]{{40}}, not {known}"):
            fetch(REPO, "notes.txt")

    @pytest.mark.parametrize("damage", [lambda content: b"x" + content[1:], lambda content: content[:-1]])
    def test_a_file_that_was_damaged_in_the_cache(self, hub, repo, run, damage):
        works(run())
        path = fetch(REPO)
        path.write_bytes(damage(repo[WEIGHTS]))
        known = hashlib.sha256(repo[WEIGHTS]).hexdigest()
        with hub.gone():
            one_line(run(), f"'{REPO}'", "is damaged", f"not {known}")
            one_line(run(), f"'{REPO}'", "connection")  # it was removed
        works(run())
        assert fetch(REPO).read_bytes() == repo[WEIGHTS]

    def test_a_damaged_file_that_cannot_be_removed(self, hub, repo, monkeypatch):
        path = fetch(REPO)
        path.write_bytes(b"damaged")

        def refuse(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        for _ in range(2):
            with pytest.raises(HubError, match=f"is damaged.*remove {path.resolve()} and try again"):
                fetch(REPO)

    def test_a_file_is_hashed_once(self, hub, repo, monkeypatch):
        hashed = []
        monkeypatch.setattr(zoo, "digest", lambda path, *start: hashed.append(path) or known)
        known = hashlib.sha256(repo[WEIGHTS]).hexdigest()
        assert fetch(REPO) == fetch(REPO) and len(hashed) == 1

    def test_a_cache_without_links_has_no_digests(self, hub, repo):
        path = fetch(REPO)
        path.unlink()
        path.write_bytes(b"as copied")
        assert fetch(REPO).read_bytes() == b"as copied"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left in"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), "/cache: Permission denied"),
        (ConnectionResetError("reset"), "connection"),
        (TimeoutError("late"), "connection"),
        (OSError("Consistency check failed: file\nshould be of size 3"), "did not arrive whole"),
        (huggingface_hub.errors.LocalTokenNotFoundError("no\ntoken"), "`hf auth login`"),
        (huggingface_hub.errors.LocalEntryNotFoundError("not\nfound"), "not in the cache"),
        (HubError("as it is"), "as it is"),
        (KeyError("other\nlines"), "other"),
    ],
)
def test_problems_of_the_machine(error, part):
    line = problem(error, REPO)
    assert part in line and "\n" not in line
    assert REPO in line or not isinstance(error, OSError)


def test_quiet_puts_things_back(monkeypatch):
    logger = logging.getLogger("huggingface_hub")
    before = logger.level, huggingface_hub.utils.are_progress_bars_disabled()
    with pytest.raises(KeyError), zoo.quiet():
        assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
        assert huggingface_hub.utils.are_progress_bars_disabled()
        raise KeyError
    assert (logger.level, huggingface_hub.utils.are_progress_bars_disabled()) == before
    monkeypatch.setenv("HF_HUB_VERBOSITY", "info")
    with zoo.quiet():
        assert logger.level == before[0]
