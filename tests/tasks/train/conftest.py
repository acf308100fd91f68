import pytest
from train_runs import tiny, write_images


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """A folder with train and val, three classes told by their colour."""
    root = tmp_path_factory.mktemp("coloured")
    write_images(root / "train", 12)
    write_images(root / "val", 4, seed=1)
    return root


@pytest.fixture
def train(command, coloured):
    """Run `train` on the coloured pictures with a tiny model; returns status, lines of stdout, lines of stderr."""

    def run(*arguments, data=coloured):
        return command("train", *tiny(data), *arguments)

    return run
