"""docs/data-plane.yaml against a service: whatever schemathesis makes of the description, the answer is one that it describes."""

import json
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_rig import NAME, Box
from traffic_maker import BODIES

DESCRIPTION = Path(__file__).parents[2] / "docs" / "data-plane.yaml"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 60
OURS = {"model": NAME, "version": "1"}

schema = schemathesis.openapi.from_path(DESCRIPTION)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    box = Box(tmp_path_factory.mktemp("described"))
    yield box.up().url
    box.close()


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_the_answer_is_one_that_is_described(case, url):
    case.call_and_validate(base_url=url, checks=CHECKS)
    if case.path_parameters:  # nearly always of another model: once more of ours
        case.path_parameters = {name: OURS[name] for name in case.path_parameters if name in OURS}
        case.call_and_validate(base_url=url, checks=CHECKS)


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
def test_a_prediction_is_as_it_is_described(path, url):
    names = {name: OURS[name] for name in OURS if f"{{{name}}}" in path}
    for body in BODIES:
        case = schema[path]["POST"].Case(
            path_parameters=names, body=json.loads(body), media_type="application/json"
        )
        answer = case.call_and_validate(base_url=url, checks=CHECKS)
        assert answer.status_code == 200
        labels = {"labels": [{"id": answer.json()["id"], "label": "0", "annotator": "ann", "shown": True}]}
        told = schema["/v2/models/{model}/labels"]["POST"].Case(
            path_parameters={"model": NAME}, body=labels, media_type="application/json"
        )
        assert told.call_and_validate(base_url=url, checks=CHECKS).json() == {"accepted": 1}


def test_everything_that_is_there_is_described(url):
    """What the router knows of and the description does not would be a route without a contract."""
    described = {
        (operation.ok().path, operation.ok().method.upper()) for operation in schema.get_all_operations()
    }
    assert ("/v2/models/{model}/labels", "POST") in described
    assert len(described) == 10
    for path, method in described:
        concrete = url + path.format(**OURS)
        allowed = {one.strip() for one in httpx.request("PATCH", concrete).headers["allow"].split(",")}
        assert allowed - {"HEAD"} == {method}, path
