"""`docs/openapi.yaml` and the running server describe the same answers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from app.errors import GatewayError, Unreadable
from app.version import VERSION
from bench.testbed.client import Answer, exchange, get, head, post
from tests.gateways import Gateways, Process, Target, query

PATH = Path(__file__).parents[2] / "docs" / "openapi.yaml"
Node = dict[str, Any]
DOCUMENT: Node = yaml.safe_load(PATH.read_text())
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
INGEST = "/ingest/{vendor}"
JSON = "application/json"


def resolve(node: Node) -> Node:
    """Return the object that a reference leads to."""
    while "$ref" in node and node["$ref"].startswith("#/components/"):
        target: Node = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


def operations() -> Iterator[tuple[str, str, Node]]:
    """Yield the path, the method and the description of each operation."""
    for path, item in DOCUMENT["paths"].items():
        yield from ((path, name, item[name]) for name in METHODS if name in item)


DOCUMENTED = {
    (path, method, int(status)): resolve(response)
    for path, method, operation in operations()
    for status, response in operation["responses"].items()
}
Provocation = Callable[["Targets"], Awaitable[Answer]]


class Targets(NamedTuple):
    """The gateways that answer."""

    complete: Target
    without_database: Target
    without_secret: Target


@pytest.fixture
async def targets(server: Process, gateways: Gateways) -> Targets:
    """Gateways that lack a service or a setting, beside one that lacks nothing."""
    without_database = await gateways.start(DATABASE_URL="postgresql://127.0.0.1:1/nowhere")
    return Targets(server, without_database, await gateways.start(ADJUST_CALLBACK_SECRET=""))


async def probe(gateway: Target, path: str) -> Answer:
    """Send a HEAD, whose answer has no body, and read to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head("HEAD", path, headers={"Connection": "close"}))
    raw_head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return Answer(int(raw_head.split()[1]), {}, body)


def refused(method: str, path: str) -> Provocation:
    """Return a request with a method that is not served."""
    request = head(method, f"{path}?{query()}", headers={"Content-Length": "0"})
    return lambda targets: exchange(targets.complete.port, request)


def posted(name: str, body: bytes, **parameters: str) -> Provocation:
    """Return a POST of JSON to one of the gateways."""
    return lambda targets: targets._asdict()[name].post(body, JSON, **parameters)


CALLBACK = b'{"event_token":"g3mz3t","created_at":1750500000,"user_id":"openapi"}'
# A request for each documented path, method and status.
PROVOCATIONS: dict[tuple[str, str, int], Provocation] = {
    (INGEST, "get", 200): lambda targets: targets.complete.callback(user_id="openapi"),
    (INGEST, "get", 400): lambda targets: targets.complete.send(query() + "&a=1" * 4_000),
    (INGEST, "get", 401): lambda targets: targets.complete.callback(secret="wrong"),
    (INGEST, "get", 404): lambda targets: get(targets.complete.port, f"/ingest/nobody?{query()}"),
    (INGEST, "get", 405): refused("PUT", "/ingest/adjust"),
    (INGEST, "get", 500): lambda targets: targets.without_database.callback(),
    (INGEST, "get", 503): lambda targets: targets.without_secret.callback(),
    (INGEST, "post", 200): posted("complete", CALLBACK),
    (INGEST, "post", 400): posted("complete", b"[]"),
    (INGEST, "post", 401): posted("complete", CALLBACK, secret="wrong"),
    (INGEST, "post", 404): lambda targets: post(
        targets.complete.port, "/ingest/nobody", CALLBACK, JSON
    ),
    (INGEST, "post", 405): refused("DELETE", "/ingest/adjust"),
    (INGEST, "post", 500): posted("without_database", CALLBACK),
    (INGEST, "post", 503): posted("without_secret", CALLBACK),
    ("/healthz", "get", 200): lambda targets: get(targets.complete.port, "/healthz"),
    ("/healthz", "get", 405): refused("POST", "/healthz"),
    ("/healthz", "head", 200): lambda targets: probe(targets.complete, "/healthz"),
    ("/readyz", "get", 200): lambda targets: get(targets.complete.port, "/readyz"),
    ("/readyz", "get", 405): refused("PATCH", "/readyz"),
    ("/readyz", "get", 503): lambda targets: get(targets.without_database.port, "/readyz"),
    ("/readyz", "head", 200): lambda targets: probe(targets.complete, "/readyz"),
    ("/readyz", "head", 503): lambda targets: probe(targets.without_database, "/readyz"),
    ("/metrics", "get", 200): lambda targets: get(targets.complete.port, "/metrics"),
    ("/metrics", "get", 405): refused("OPTIONS", "/metrics"),
}


def assert_documented(path: str, method: str, answer: Answer) -> None:
    """An answer has a documented status, documented headers, and a body of its schema."""
    response = DOCUMENTED[path, method, answer.status]
    for name, header in response.get("headers", {}).items():
        assert name.lower() in answer.headers
        value: object = answer.headers[name.lower()]
        schema = resolve(header)["schema"]
        validate(schema, int(str(value)) if schema["type"] == "integer" else value)
    if "content" not in response:
        assert answer.body == b""
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    body = answer.json if media_type == JSON else answer.body.decode()
    validate(response["content"][media_type]["schema"], body)


def validate(schema: Node, instance: object) -> None:
    """Validate against a schema whose references lead into the document."""
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(instance)


@pytest.mark.parametrize(("path", "method", "status"), PROVOCATIONS)
async def test_documented_answer_is_given(
    path: str, method: str, status: int, targets: Targets
) -> None:
    """Each documented status is answered, with the headers and the body of its schema."""
    answer = await PROVOCATIONS[path, method, status](targets)
    assert answer.status == status
    assert_documented(path, method, answer)


def test_each_documented_answer_is_provoked() -> None:
    """No path, method or status is documented without a request that provokes it."""
    assert PROVOCATIONS.keys() == DOCUMENTED.keys()


def test_each_error_of_the_gateway_is_documented() -> None:
    """Each error that becomes an answer has its status, and its message, at `/ingest`."""
    answered = {error for error in subclasses(GatewayError) if error is not Unreadable}
    assert len(answered) > 5
    for error in answered:
        schema = resolve(DOCUMENTED[INGEST, "post", error.status])["content"][JSON]["schema"]
        message = "Unknown vendor: x" if error.status == 404 else error.message
        validate(schema, {"error": message})


def subclasses(kind: type[GatewayError]) -> set[type[GatewayError]]:
    """Return the class and all classes below it."""
    below = set(kind.__subclasses__())
    return {kind, *(found for sub in below for found in subclasses(sub))}


ODD = [
    ("get", f"/ingest/adjust?{query(event_token='zzzzzz')}", b""),  # dropped
    ("get", "/ingest/adjust", b""),
    ("get", f"/ingest/adjust/?{query(created_at='never')}", b""),
    ("get", "/ingest/%22%C3%A9?secret=s3cr3t", b""),
    ("post", f"/ingest/adjust?{query()}", b"\x00\xff"),
    ("post", f"/ingest/adjust?{query()}", b'{"a":'),
    ("post", f"/ingest/adjust?{query(user_id='form')}", b"a=1&a=2"),
    ("post", "/ingest/adjust", b"secret=s3cr3t"),
    ("get", "/healthz?x=1", b"x"),
    ("get", "/metrics", b"x"),
]


@pytest.mark.parametrize(("method", "target", "body"), ODD)
async def test_each_answer_is_documented(
    server: Process, method: str, target: str, body: bytes
) -> None:
    """Whatever is sent to a documented path, the answer is one of the documented ones."""
    headers = {"Content-Length": str(len(body))}
    answer = await exchange(server.port, head(method.upper(), target, headers=headers) + body)
    path = INGEST if target.startswith("/ingest/") else target.partition("?")[0]
    assert_documented(path, method, answer)


def test_document_is_openapi() -> None:
    """The document has the required parts, and each reference and each schema is valid."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == VERSION
    identifiers = [operation["operationId"] for _, _, operation in operations()]
    assert len(identifiers) == len(set(identifiers))
    declared = {tag["name"] for tag in DOCUMENT["tags"]}
    schemes = DOCUMENT["components"]["securitySchemes"]
    for _, _, operation in operations():
        assert set(operation["tags"]) <= declared
        assert all(name in schemes for one in operation.get("security", []) for name in one)
    assert all(response["description"] for response in DOCUMENTED.values())
    for node in nodes(DOCUMENT):
        resolve(node)
        if isinstance(node.get("schema"), dict):
            Draft202012Validator.check_schema(node["schema"])
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for name, item in DOCUMENT["paths"].items():
        parameters = [resolve(parameter) for parameter in item.get("parameters", [])]
        in_path = {p["name"] for p in parameters if p["in"] == "path" and p["required"]}
        assert in_path == ({"vendor"} if "{vendor}" in name else set())


def test_examples_have_their_schema() -> None:
    """Each example of the document is an instance of the schema beside it."""
    examples = [
        (node["schema"], one["value"])
        for node in nodes(DOCUMENT)
        for one in node.get("examples", {}).values()
    ]
    examples += [(node["schema"], node["example"]) for node in nodes(DOCUMENT) if "example" in node]
    assert len(examples) > 4
    for schema, example in examples:
        validate(schema, example)


def nodes(node: object) -> Iterator[Node]:
    """Yield each object of the document."""
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from nodes(child)
