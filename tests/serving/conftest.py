import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))  # the models with a fault each

from bench_worker import Bench


@pytest.fixture
def start(tmp_path):
    """Starts a worker on a model's bytes; any number of them, all gone after the test."""
    benches = []

    def start(content, **options):
        directory = tmp_path / str(len(benches))
        directory.mkdir()
        benches.append(Bench(directory, content, **options))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Workers that many tests of a module share, one per model."""
    benches = {}

    def shared(name, make, **options):
        if name not in benches:
            benches[name] = Bench(tmp_path_factory.mktemp(name), make(), **options)
        return benches[name]

    yield shared
    for bench in benches.values():
        bench.close()
