"""Everything that is wrong with a manifest, at its place and in words that help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployctl.errors import InvalidError
from deployctl.manifest.load import load
from deployctl.manifest.problems import ManifestError
from tests.manifest.conftest import FULL, changed, loaded, place_of, problems, with_steps
