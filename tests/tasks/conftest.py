import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LAMBDARESNET_ZOO_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data():
    """A folder of the data sets that are not in the repository."""

    def folder(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"no {DATA / name}; set LAMBDARESNET_ZOO_DATA to a folder that holds it")
        return DATA / name

    return folder
