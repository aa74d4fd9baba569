import pytest
from rig import Street


@pytest.fixture
def make_street(tmp_path):
    """Builds a street with a router of one's own settings."""
    streets = []

    def make(**settings):
        streets.append(Street(tmp_path, **settings))
        return streets[-1]

    yield make
    for street in streets:
        street.close()


@pytest.fixture
def street(make_street):
    return make_street()


@pytest.fixture(scope="module")
def shared_street(tmp_path_factory):
    """One street for many tests that leave nothing behind."""
    street = Street(tmp_path_factory.mktemp("street"))
    yield street
    street.close()
