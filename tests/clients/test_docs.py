"""The lines of docs/clients are copied, the address and the key put in, and started: a client's developer does no more."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.clients import programs
from tests.clients.line import ROOT, Line
from tests.clients.programs import ALL, CHROMIUM, JSDOM, MODULE, Client, need, started
from tests.support.shop import Shop
from tests.support.wait import until

PAGES = ROOT / "docs" / "clients"
ADDRESS, KEY = "https://events.shop.example", "<write key>"
PAGE_OF = {
    "segment-analytics-python": "segment-analytics-python.md",
    "rudder-sdk-python": "rudder-sdk-python.md",
    "@segment/analytics-node": "segment-analytics-node.md",
    "@rudderstack/rudder-sdk-node": "rudder-sdk-node.md",
    "@jitsu/js": "jitsu-js.md",
}
CLIENTS = [client for client in ALL if client.name in PAGE_OF]


def lines_of(page: str, language: str, url: str, key: str) -> str:
    """The first block in this language, for this deployment."""
    block = re.search(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    assert block is not None, f"{page} has lines to copy"
    assert ADDRESS in block[1]
    assert KEY in block[1]
    return block[1].replace(ADDRESS, url).replace(KEY, key)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
async def test_the_lines_of_a_page_bring_an_event(client: Client, shop: Shop, line: Line, tmp_path: Path) -> None:
    need(client)
    key = shop.site_key if client.public else shop.server_key
    language, ending = ("python", "py") if client.module else ("js", "mjs")
    program = tmp_path / f"copied.{ending}"
    program.write_text(lines_of(PAGE_OF[client.name], language, line.url, key))
    if not client.module:
        (tmp_path / "node_modules").symlink_to(programs.node_modules())
    line.begin()
    process = await asyncio.create_subprocess_exec(
        sys.executable if client.module else "node",
        str(program),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), programs.ENDING)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    await arrived(line)


@pytest.mark.parametrize("browser", [JSDOM, CHROMIUM], ids=str)
async def test_the_lines_of_the_websites_page_bring_an_event(
    browser: Client, shop: Shop, line: Line, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html>" + lines_of("segment-analytics-next.md", "html", line.url, shop.site_key))
    line.begin()
    async with started(browser, line.url, shop.site_key, [], WEBSITE=str(page)):
        await until(line.accepted, programs.ENDING, "the page has sent its event", every=0.05)
    await arrived(line)


async def test_the_lines_for_a_website_with_a_bundler_bring_an_event(shop: Shop, line: Line, tmp_path: Path) -> None:
    need(MODULE)
    module = tmp_path / "page.mjs"
    module.write_text(lines_of("segment-analytics-next.md", "js", line.url, shop.site_key))
    (tmp_path / "node_modules").symlink_to(programs.node_modules())
    line.begin()
    async with started(MODULE, line.url, shop.site_key, [], MODULE=str(module)):
        await until(line.accepted, programs.ENDING, "the module has sent its event", every=0.05)
    await arrived(line)


async def test_the_lines_of_jitsu_bring_an_event_from_a_browser_of_another_origin(
    shop: Shop, line: Line, tmp_path: Path
) -> None:
    """The browser asks before it posts, and shows the page when it shall come again."""
    page = tmp_path / "page.html"
    modules = '<script type="importmap">{"imports": {"@jitsu/js": "/jitsu.js"}}</script>'
    lines = lines_of("jitsu-js.md", "js", line.url, shop.site_key)
    page.write_text(f'<!doctype html>{modules}<script type="module">{lines}</script>')
    line.begin("503:2")
    async with started(CHROMIUM, line.url, shop.site_key, [], WEBSITE=str(page)):
        await until(line.accepted, programs.ENDING, "the page has sent its event", every=0.05)
    asked = line.requests("OPTIONS")[0]
    assert asked.answered == 204 and asked.headers["access-control-request-method"] == "POST"
    assert "x-write-key" in asked.headers["access-control-request-headers"]
    refused, taken = line.requests("POST")
    assert (refused.answered, taken.answered) == (503, 200) and refused.json == taken.json
    assert taken.at - refused.at >= 2 and taken.headers["origin"] == asked.headers["origin"]
    assert (taken.json["event"], taken.json["properties"]["product_id"]) == ("Product Added", "p-1")


async def arrived(line: Line) -> None:
    [post] = line.requests("POST")
    assert post.answered == 200
    [event] = post.json.get("batch", [post.json])
    assert (event["event"], event["properties"]["product_id"]) == ("Product Added", "p-1")


def test_each_page_names_the_version_that_is_tried() -> None:
    said = (PAGES / "README.md").read_text()
    lock = (ROOT / "tests" / "clients" / "package.json").read_text()
    for name in ("@segment/analytics-node", "@rudderstack/rudder-sdk-node", "@segment/analytics-next", "@jitsu/js"):
        [pinned] = re.findall(rf'"{name}": "([\d.]+)"', lock)
        assert re.search(rf"\[{name}\]\(\S+\) \|[^|]*\|[^|]*\| {re.escape(pinned)} \|", said), f"{name} {pinned}"
    for name in ("segment-analytics-python", "rudder-sdk-python"):
        assert f"{name}=={version(name)}" in (PAGES / f"{name}.md").read_text()
