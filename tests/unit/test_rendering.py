"""No text holds the loop, whatever a marketer writes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

import pytest

from services.dispatch.links import Signer
from services.dispatch.rendering import Renderer
from services.dispatch.templates import Template, TemplateFault

VARIABLES = {"links": {}, "shop": {"name": "Corner Shop"}}
HEAVY = Template("heavy", 1, "transactional", {"sms": "{% for i in (1..15000) %}{% endfor %}x"})
LIGHT = Template("light", 1, "transactional", {"sms": "{{ shop.name }}"})
BROKEN = Template("broken", 1, "transactional", {"sms": "{% for i in (1..15000) %}{% endfor %}{{ shop.nobody.knows }}"})


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(Signer(b"secret", "https://mail.shop.example"), frozenset())


async def turns_during(renderer: Renderer, template: Template) -> int:
    """How often the loop turned while the text was made, or refused."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(turning())
    await asyncio.sleep(0)
    before = turns
    with suppress(TemplateFault):
        await renderer.render(template, "sms", VARIABLES, uuid4())
    after = turns
    task.cancel()
    return after - before


async def test_the_loop_turns_while_a_heavy_text_is_made_each_time(renderer: Renderer) -> None:
    for _ in range(3):
        assert await turns_during(renderer, HEAVY) > 0


async def test_a_text_that_was_light_is_made_at_once(renderer: Renderer) -> None:
    assert await turns_during(renderer, LIGHT) > 0, "not before it is known to be light"
    assert await turns_during(renderer, LIGHT) == 0


async def test_a_text_that_fails_late_counts_as_heavy_too(renderer: Renderer) -> None:
    for _ in range(3):
        assert await turns_during(renderer, BROKEN) > 0
