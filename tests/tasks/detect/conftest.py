import pytest
from coco_sets import write_set


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """The arguments --annotations and --images of a small data set."""
    annotations, images = write_set(tmp_path_factory.mktemp("coco"))
    return ("--annotations", annotations, "--images", images)
