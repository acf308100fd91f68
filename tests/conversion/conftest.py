"""The model behind the file that tests convert."""

import pytest
import timm
from converted import NAME


@pytest.fixture
def tiny(checkpoint):
    """The model behind the file `checkpoint`."""
    return timm.create_model(NAME, num_classes=7, checkpoint_path=str(checkpoint)).eval()
