"""Where a model may be said to be: what is refused, with its place, and what of it is never kept."""

from pathlib import Path

import pytest
from manifest_texts import ENGINES, FULL, METRICS, changed

from deployctl.manifest.load import load
from deployctl.manifest.manifest import ModelRef
from deployctl.manifest.model_uri import Form, redacted
from deployctl.manifest.problems import ManifestError
from deployctl.sources import SOURCE_FORMS

DIGEST = "sha256:" + "c" * 64
FORMS = {
    "http": SOURCE_FORMS["http"],
    "https": SOURCE_FORMS["https"],
    "shelf": Form(r"shelf:[0-9]+", "shelf:NUMBER", needs_digest=False),
}


def read(text):
    known = {"engines": ENGINES, "metrics": METRICS, "model_sources": FORMS}
    return load(text.encode(), "f", base=Path("/models-of-test"), **known)


def candidate(uri, digest=f', digest: "{DIGEST}"'):
    old = f'{{version: "2", uri: models/v2.onnx, digest: "{DIGEST}"}}'
    return changed(old, f'{{version: "2", uri: {uri}{digest}}}')


def problem(text):
    with pytest.raises(ManifestError) as caught:
        read(text)
    (one,) = map(str, caught.value.problems)
    return one


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/v2.onnx", "unknown scheme 'ftp' (known: file, http, https, shelf)"),
        (
            "hf:org/model",
            "unknown scheme 'hf' (known: file, http, https, shelf); a path with a colon in it begins",
        ),
        ("https://me:5ec7e7@host/v2.onnx", "a https uri holds no user and no password"),
        ('"https://5ec7e7@host/v2.onnx?a=b"', "a https uri holds no user and no password"),
        ("https:/host/v2.onnx", "'https:/host/v2.onnx' is no https uri; write https://HOST/PATH"),
        ("https://host", "is no https uri"),
        ("https://host:99999/v2.onnx", "is no https uri"),
        ('"https://[::1/v2.onnx"', "is no https uri"),
        ('"https://host/a b?5ec7e7#c"', "'https://host/a b?redacted' is no https uri"),
        ("shelf:top", "'shelf:top' is no shelf uri; write shelf:NUMBER"),
        ("file://elsewhere/v2.onnx", "is no local file"),
    ],
)
def test_what_is_no_uri_is_said_at_its_place_and_without_its_secrets(uri, words):
    said = problem(candidate(uri))
    assert said.startswith("f:13:")
    assert words in said
    assert "5ec7e7" not in said


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS"])
def test_a_web_server_needs_a_digest_beside_it(scheme):
    text = candidate(f"{scheme}://host/v2.onnx", digest="")
    assert "needs a digest beside its" in problem(text)
    assert read(candidate("shelf:7", digest="")).candidate.digest is None


def test_a_remote_model_has_a_uri_and_no_path():
    manifest = read(candidate("https://host/v2.onnx"))
    assert manifest.candidate == ModelRef("2", None, DIGEST, "https://host/v2.onnx")
    assert manifest.baseline.path == Path("/models-of-test/models/v1.onnx")
    assert [*manifest.models] == ["baseline", "candidates/0"]


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_query_is_used_and_kept_nowhere(quote):
    text = (
        candidate("URI")
        .replace('{version: "2", uri: URI, ', "\n    version: '2'\n    uri: URI\n    ")
        .replace(f'digest: "{DIGEST}"}}', f'digest: "{DIGEST}"')
    )
    manifest = read(text.replace("URI", f"{quote}https://host/v2.onnx?X-Sig=5ec7e7&x=%2F{quote}"))
    assert manifest.candidate.uri == "https://host/v2.onnx?X-Sig=5ec7e7&x=%2F"
    assert "https://host/v2.onnx?redacted" in manifest.text
    assert "5ec7e7" not in manifest.text + repr(manifest)
    again = read(manifest.text)
    assert again.text == manifest.text
    assert again.candidate.uri == "https://host/v2.onnx?redacted"


def test_a_query_that_is_not_found_in_the_text_is_refused():
    said = problem(candidate(r'"https://host/v2.onnx?X-Sig=5ec\x37e7"'))
    assert "uri: write it on one line and without escapes" in said
    assert "5ec7e7" not in said


def test_two_queries_of_which_one_begins_like_the_other_are_both_cut_out():
    text = candidate('"https://host/v2.onnx?5ec7e7-more"').replace(
        "models/v1.onnx", '"https://host/v1.onnx?5ec7e7"'
    )
    manifest = read(text)
    assert manifest.text.count("?redacted") == 2
    assert "5ec7e7" not in manifest.text
    assert "-more" not in manifest.text


def test_a_local_manifest_keeps_its_text():
    assert read(FULL).text == FULL


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://host/a?b=c", "https://host/a?redacted"),
        ("https://me:secret@host/a?b=c@d", "https://host/a?redacted"),
        ("models:/digits@champion", "models:/digits@champion"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host?user@x", "https://host?redacted"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert redacted(uri) == shown
