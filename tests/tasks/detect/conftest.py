import os
from pathlib import Path

import pytest
from coco_sets import write_set

DATA = Path(os.environ.get("LAMBDARESNET_ZOO_DATA", Path(__file__).parents[3].parent / "shared" / "data"))


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """The arguments --annotations and --images of a small data set."""
    annotations, images = write_set(tmp_path_factory.mktemp("coco"))
    return ("--annotations", annotations, "--images", images)


@pytest.fixture(scope="session")
def shared_data():
    """A folder of the data sets that are not in the repository."""

    def folder(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"no {DATA / name}; set LAMBDARESNET_ZOO_DATA to a folder that holds it")
        return DATA / name

    return folder
