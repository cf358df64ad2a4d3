"""The API's metrics: what was asked of which route, and nothing that a client says."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.core import Metric

from aios_kernel_api.app import DOORS
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.stats import CUT_OFF, NO_ROUTE, ApiStats
from tests.api_scene import ApiScene, bearer, serving
from tests.waiting import wait_until_async

Samples = dict[tuple[str, ...], float]
ECHO = {"body": {"type": "tool.echo", "text": "x"}}


def samples(kernel: Kernel) -> Samples:
    """Return what the page shows: name and labels, value."""
    return read(list(kernel.metrics()))


def read(metrics: list[Metric]) -> Samples:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


async def test_requests_are_counted_by_route_and_status(api: ApiScene) -> None:
    async with serving(api.redis_url, api.database_url) as served:
        before = samples(served.kernel)
        assert ("aios_api_sessions",) in before
        headers = bearer(api.token())
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
            answer = await client.post("/v1/syscalls?wait_s=10", json=ECHO)
            assert answer.status_code == 200
            for _ in range(2):
                await client.get(f"/v1/syscalls/{answer.json()['id']}")
            await client.get("/v1/syscalls/nonsense-of-a-client")
            await client.get("/v1/nothing-here")
            await client.delete("/v1/syscalls")
            await client.get("/v1/syscalls/x", headers={"authorization": "Bearer wrong"})
        shown = samples(served.kernel)
    requests = "aios_api_requests_total"
    assert shown[requests, "POST", "/v1/syscalls", "200"] == 1
    assert shown[requests, "GET", "/v1/syscalls/{id}", "200"] == 2
    assert shown[requests, "GET", "/v1/syscalls/{id}", "400"] == 1
    assert shown[requests, "GET", "/v1/syscalls/{id}", "401"] == 1
    assert shown[requests, "", NO_ROUTE, "404"] == 1
    assert shown[requests, "", NO_ROUTE, "405"] == 1
    assert shown["aios_api_answer_seconds_count", "/v1/syscalls/{id}"] == 4
    assert shown["aios_api_answer_seconds_bucket", "/v1/syscalls/{id}", "+Inf"] == 4
    assert shown["aios_api_open_requests", "/v1/syscalls/{id}"] == 0
    routes = {route.path for door in DOORS for route in door.routes}
    assert {labels[2] for labels in shown if labels[0] == requests} <= {*routes, NO_ROUTE}


async def test_a_stream_is_open_for_as_long_as_it_lasts(api: ApiScene) -> None:
    async with serving(api.redis_url, api.database_url) as served:
        opened = ("aios_api_open_requests", "/v1/session/events")
        headers = bearer(api.token())
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
            async with client.stream("GET", "/v1/session/events") as stream:
                assert stream.status_code == 200
                await anext(stream.aiter_bytes())
                shown = samples(served.kernel)
                assert shown[opened] == 1
                assert shown["aios_api_sessions",] == 1
            await wait_until_async(lambda: samples(served.kernel)[opened] == 0)
        assert samples(served.kernel)["aios_api_sessions",] == 0


async def test_what_waits_is_shown(api: ApiScene) -> None:
    messages = [{"role": "user", "content": "x"}]
    slow = {"body": {"type": "llm.chat", "messages": messages, "max_tokens": 4_000}}
    async with serving(api.redis_url, api.database_url) as served:
        headers = bearer(api.token())
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
            asking = asyncio.create_task(client.post("/v1/syscalls?wait_s=30", json=slow))
            await wait_until_async(lambda: samples(served.kernel)["aios_api_syscalls",] == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await wait_until_async(lambda: samples(served.kernel)["aios_api_syscalls",] == 0)


def test_a_request_without_an_answer_is_one_too() -> None:
    stats = ApiStats()
    with stats.request("GET", "/x"):
        assert read(list(stats.metrics()))["aios_api_open_requests", "/x"] == 1
    shown = read(list(stats.metrics()))
    assert shown["aios_api_requests_total", "GET", "/x", str(CUT_OFF)] == 1
    assert not [name for name, *_ in shown if name == "aios_api_answer_seconds_count"]


async def test_the_header_of_a_trace_goes_with_the_syscall(api: ApiScene) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with serving(api.redis_url, api.database_url) as served:
        headers = {**bearer(api.token()), "traceparent": parent}
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
            answer = await client.post("/v1/syscalls?wait_s=10", json=ECHO)
            assert answer.status_code == 200, answer.text
            key = served.kernel.keys.job(answer.json()["id"])
            metadata = await served.kernel.connection.execute("HGET", key, "aios_metadata")
            assert parent.encode() in metadata
            client.headers["traceparent"] = "nonsense"
            assert (await client.post("/v1/syscalls?wait_s=10", json=ECHO)).status_code == 200
