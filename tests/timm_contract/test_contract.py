"""timm's own tests of every model it registers, run on ours.

The tests are those of the installed timm, from its source distribution: fetched when this test first
runs, kept in pytest's cache folder, and never part of this repository. See plugin.py for how they are
pointed at this package.

Weights that the tests download, those of timm's own lambda networks, are random and come from a hub on
the loopback interface.

By default a few models run, which together take every path through the package's code;
``LAMBDARESNET_ZOO_ALL_MODELS=1`` runs all of them.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save

import lambdaresnet_zoo

SLICE = (
    "test_lambdaresnet",
    "lambda_mobilenetv2_100",
    "lambdaresnet18_leaderj1001",  # a pool that counts its padding, at stride 1 too
    "lambdaresnet26rpt_256",  # global scope
    "lambdaresnet26t",  # position bias, 2x2 pool
    "lambdaresnet32px",  # two stages, a scope for each
    "lambdaresnet32px_conv",  # no lambda layer
    "lambdaresnet50",  # the paper's stem, shortcuts and SE
    "lambdaresnet50_llll_shared",  # embeddings shared in a stage
    "lambdaresnet50_llll_u4",  # intra-depth
    "lambdaresnet50ts",  # SiLU
)
MODELS = lambdaresnet_zoo.list_models() if os.environ.get("LAMBDARESNET_ZOO_ALL_MODELS") == "1" else SLICE

PER_MODEL = (
    "test_model_backward",
    "test_model_backward_fx",
    "test_model_forward",
    "test_model_forward_features",
    "test_model_forward_fx",
    "test_model_forward_fx_torchscript",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_model_forward_torchscript",
    "test_prune_intermediate_layers_contract",
)
PER_CFG = ("test_model_default_cfgs",)
PER_WEIGHTS = ("test_model_features_pretrained", "test_model_load_pretrained")

# timm traces no backward pass of a network that is bound to more than 224 pixels.
SKIPPED = {("test_model_backward_fx", "lambdaresnet26rpt_256"): "Fixed input size model > limit."}


def expected_outcomes(model: str) -> dict[tuple[str, str], str]:
    """Outcome of each of timm's tests of a model, by test and by the model's name as timm lists it."""
    # The argument is a pattern; a tag follows a dot.
    cfgs = [name for name in timm.list_models(f"{model}*", include_tags=True) if name.split(".")[0] == model]
    weights = [name for name in timm.list_pretrained(f"{model}*") if name.split(".")[0] == model]
    assert cfgs
    keys = [(test, model) for test in PER_MODEL]
    keys += [(test, name) for test in PER_CFG for name in cfgs]
    keys += [(test, name) for test in PER_WEIGHTS for name in weights]
    return {key: SKIPPED.get(key, "passed") for key in keys}


def read_outcomes(report: Path) -> dict[tuple[str, str], str]:
    """The same from a JUnit report; what was skipped counts by its reason."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        model = re.sub(r"^\d+-", "", parameters)  # [batch size-model], or [model]
        skipped = case.find("skipped")
        if skipped is not None:
            outcome = skipped.attrib["message"]
        else:
            outcome = "passed" if case.find("failure") is None and case.find("error") is None else "failed"
        outcomes[test, model] = outcome
    return outcomes


@pytest.fixture(scope="session")
def timm_tests(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the installed timm's source distribution, with its test of models."""
    name = f"timm-{importlib.metadata.version('timm')}"
    cache = getattr(pytestconfig, "cache", None)
    folder = tmp_path_factory.mktemp("timm") if cache is None else cache.mkdir("timm_contract")
    if not (folder / name).exists():
        # In a folder of its own until it is complete: another worker may be doing the same.
        download = tmp_path_factory.mktemp("download")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        fetched = subprocess.run(
            [*command, "--dest", str(download), name.replace("-", "==")], capture_output=True, text=True, timeout=300
        )
        archives = list(download.glob("*.tar.gz"))
        if fetched.returncode or len(archives) != 1:
            reason = f"the source distribution of {name} could not be fetched:\n{fetched.stderr[-2000:]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        with tarfile.open(archives[0]) as archive:
            for path in ("pyproject.toml", "tests/conftest.py", "tests/test_models.py"):
                archive.extract(f"{name}/{path}", download, filter="data")
        try:
            (download / name).rename(folder / name)
        except OSError:
            if not (folder / name).exists():
                raise
    return folder / name


def serve_weights(hub: Any, model: str) -> None:
    """Put what the model's tags download on the hub."""
    for name in timm.list_pretrained(f"{model}*"):
        hub_id = timm.get_pretrained_cfg(name).hf_hub_id
        if name.split(".")[0] == model and hub_id:
            theirs = timm.create_model(hub_id.split("/")[1].split(".")[0])
            hub.add(hub_id, {"model.safetensors": save(theirs.state_dict())})


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("model", MODELS)
def test_timm_contract(model: str, timm_tests: Path, tmp_path: Path, hub: Any) -> None:
    serve_weights(hub, model)
    report = tmp_path / "report.xml"
    # timm leaves tests out on GitHub's machines, for the memory of its largest models.
    environment = {
        key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS" and not key.startswith("PYTEST_")
    }
    environment |= {"LAMBDARESNET_ZOO_CONTRACT_MODELS": model, **hub.environment}
    environment.setdefault("OMP_NUM_THREADS", "1")  # the parallelism is that of pytest-xdist, over models
    paths = [Path(__file__).parents[1], Path(lambdaresnet_zoo.__file__).parents[1]]
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}"]
    command += ["-c", str(timm_tests / "pyproject.toml"), f"--rootdir={timm_tests}", "-p", "timm_contract.plugin"]
    # timm's limits in seconds, a test each, are about its own machines.
    command += ["-p", "no:cacheprovider", "-p", "no:timeout", "-W", "ignore"]
    run = subprocess.run(
        [*command, str(timm_tests / "tests" / "test_models.py")],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=7000,
    )
    assert run.returncode == 0, run.stdout[-20000:]
    outcomes = read_outcomes(report)
    expected = expected_outcomes(model)
    missing = sorted(expected.keys() - outcomes.keys())
    assert not missing, f"timm {timm.__version__} did not run: {missing}"
    # A later timm may have more tests; those must pass too.
    other = {key: outcome for key, outcome in outcomes.items() if outcome != expected.get(key, "passed")}
    assert not other, other
    assert {request.path.split("/resolve/")[0][1:] for request in hub.requests} == set(hub.repos)
