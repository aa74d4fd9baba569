import pytest
from service_rig import Box


@pytest.fixture
def box(tmp_path):
    """A state directory, manifests and models of one's own; nothing runs yet."""
    box = Box(tmp_path)
    yield box
    box.close()
