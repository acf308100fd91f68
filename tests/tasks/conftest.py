import os
from pathlib import Path

import pytest
from validation_sets import BASE, MODEL, pictures

DATA = Path(os.environ.get("LAMBDARESNET_ZOO_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data():
    """A folder of the data sets that are not in the repository."""

    def folder(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"no {DATA / name}; set LAMBDARESNET_ZOO_DATA to a folder that holds it")
        return DATA / name

    return folder


@pytest.fixture
def validate(command, checkpoint):
    """Run the command on the small model."""

    def run(*arguments, name=MODEL, weights=checkpoint):
        return command("validate", "--model", name, "--checkpoint", weights, *BASE, *arguments)

    return run


@pytest.fixture
def rows():
    """The pictures, as pairs of a class and a file."""
    return list(pictures())
