"""The tools for agents, by the protocol's own client: in this process and over a pipe."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

from operators.events import AnswerEvent, Evidence
from pipelines.gateway.mcp_server import GatewayClient, make_server
from tests.browser import served, served_app
from tests.pipelines.gateway import filled, made

ROOT = Path(__file__).parents[2]
TOOLS = {"list_streams", "get_summary", "catch_up", "ask", "search_notes"}


class AnsweringSender:
    """Answers each question at once, as a worker would."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway

    async def send(self, topic: str, stream_id: str, values: list[Any]) -> list[Any]:
        question = json.loads(values[0][0])
        answer = AnswerEvent(
            stream_id=stream_id,
            epoch=0,
            revision=1,
            question_id=question["question_id"],
            question=question.get("text", ""),
            text=f"answer to {question['kind']}",
            evidence=(Evidence("s-0", 0, 900, "Ana"),),
        )
        self._gateway.views.take("answers", 1, 1, answer)
        return []

    async def close(self) -> None:
        pass


def content(result: Any) -> Any:
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


def test_tools_read_search_and_ask(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-an-agent *\n")
    gateway, _ = made(tokens, gateway_port=0)
    filled(gateway)
    gateway.api._sender = AnsweringSender(gateway)  # type: ignore[assignment]

    async def scenario(url: str) -> None:
        server = make_server(GatewayClient(url, "a-token-of-an-agent"))
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            streams = content(await client.call_tool("list_streams", {}))["streams"]
            assert [entry["stream_id"] for entry in streams] == ["s"]
            notes = content(
                await client.call_tool("get_summary", {"stream_id": "s", "since": "0.1"})
            )
            assert [item["id"] for item in notes["items"]] == ["n1"]
            assert notes["items"][0]["evidence"][0]["segment_id"] == "s-1"
            found = content(await client.call_tool("search_notes", {"query": "FRIDAY ship"}))
            assert [item["id"] for item in found["items"]] == ["n0"]
            answer = content(await client.call_tool("ask", {"stream_id": "s", "question": "When?"}))
            assert (answer["text"], answer["evidence"][0]["speaker"]) == ("answer to free", "Ana")
            caught = content(await client.call_tool("catch_up", {"stream_id": "s"}))
            assert caught["text"] == "answer to catch_up"
            missing = await client.call_tool("get_summary", {"stream_id": "none"})
            assert missing.is_error
            assert "no such stream" in missing.content[0].text
        async with Client(make_server(GatewayClient(url, "another-token-than-that"))) as client:
            refused = await client.call_tool("list_streams", {})
            assert refused.is_error

    with served(gateway) as url:
        asyncio.run(scenario(url))


def test_over_standard_input_and_output() -> None:
    gateway, _ = made(gateway_port=0)
    filled(gateway)

    async def scenario(url: str) -> None:
        arguments = ["-m", "pipelines.cli.main", "mcp", "--gateway", url]
        program = StdioServerParameters(command=sys.executable, args=arguments, cwd=str(ROOT))
        async with Client(program) as client:
            streams = content(await client.call_tool("list_streams", {}))["streams"]
            assert [entry["stream_id"] for entry in streams] == ["s"]

    with served(gateway) as url:
        asyncio.run(scenario(url))


def test_over_http() -> None:
    gateway, _ = made(gateway_port=0)
    filled(gateway)

    async def scenario(url: str) -> None:
        async with Client(f"{url}/mcp") as client:
            streams = content(await client.call_tool("list_streams", {}))["streams"]
            assert [entry["stream_id"] for entry in streams] == ["s"]

    with served(gateway) as url:
        app = make_server(GatewayClient(url)).streamable_http_app()
        with served_app(app) as address:
            asyncio.run(scenario(address))
