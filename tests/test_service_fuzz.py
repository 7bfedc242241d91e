"""Whatever the OpenAPI document allows, and what it does not, is answered without a crash or a trace."""

# ruff: noqa: E402

import pytest

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_service import write_checkpoint

from modeling_implicitrec.service import ServiceSettings, create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    served = ServiceSettings(
        model=str(write_checkpoint(folder / "model")),
        store=f"sqlite:///{folder}/histories.db",
        requests_per_second=100_000,
    )
    app = create_app(served)
    with TestClient(app):  # the lifespan runs while the requests come in
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_has_an_answer_of_the_document(case):
    answer = case.call()
    case.validate_response(answer, checks=CHECKS)
    assert "Traceback" not in answer.text
