"""Whatever the OpenAPI document allows, and what it does not, is answered without a crash or a trace."""

# ruff: noqa: E402

import pytest

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
import threading
import time

import uvicorn
from hypothesis import HealthCheck, given, settings
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
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    served = ServiceSettings(
        model=str(write_checkpoint(folder / "model")),
        store=f"sqlite:///{folder}/histories.db",
        requests_per_second=100_000,
    )
    server = uvicorn.Server(uvicorn.Config(create_app(served), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_every_request_has_an_answer_of_the_document(url):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:
        assert statuses(operation)


def statuses(operation) -> list[int]:
    """What drawn requests of one operation were answered."""
    answered = []

    @given(case=operation.as_strategy())
    @settings(
        max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case):
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        assert "Traceback" not in answer.text
        answered.append(answer.status_code)

    ask()
    return answered
