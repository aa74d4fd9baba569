"""Where models come from beside local files: MODEL_SOURCES by the scheme of a `uri`; `fetch.py` brings one into the cache."""

from deployctl.manifest.model_uri import Form
from deployctl.sources.mlflow import Mlflow
from deployctl.sources.objects import Objects
from deployctl.sources.source import Source
from deployctl.sources.web import Web

MODEL_SOURCES: dict[str, Source] = {
    "http": Web("http"),
    "https": Web("https"),
    "models": Mlflow(),
    "s3": Objects("s3", "s3"),
    "gs": Objects("gs", "gs"),
}

SOURCE_FORMS: dict[str, Form] = {scheme: source.form for scheme, source in MODEL_SOURCES.items()}
"""How the uri of each is written: what the manifest loader is told."""
