"""Calls as tasks for people: the task goes to the call centre, what came of it comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.dispatch.channels.base import Call, Forged, Report, Unreadable, World
from services.dispatch.channels.call_task import CallTask
from services.dispatch.channels.signed_hook import HookSettings
from shared.settings import load
from tests.contracts.test_channels import exchange
from tests.support.webhook_peer import SECRET, WebhookPeer, call_back

TASK = UUID("01900000-0000-7000-8000-00000000abcd")


@pytest.fixture
async def call_task(tmp_path: Path) -> AsyncIterator[CallTask]:
    adapter = CallTask(World(load(data_dir=tmp_path, outside_allow=("127.0.0.0/8",)), tmp_path))
    yield adapter
    await adapter.close()


async def back(adapter: CallTask, type: str, data: dict[str, Any], **more: Any) -> list[Report]:
    settings = HookSettings(url="https://shop.example/calls", secret=SECRET)
    headers, body = call_back(type, data, **more)
    return (await adapter.receive(Call("POST", headers, {}, body, datetime.now(UTC), settings))).reports


async def test_a_task_reaches_the_call_centre_once(call_task: CallTask) -> None:
    with WebhookPeer() as peer:
        settings = HookSettings(url=peer.url, secret=SECRET)
        message = uuid4()
        peer.script({"status": 500, "after": True})
        outcomes = [
            (await call_task.send(exchange(call_task, message, key=str(message), settings=settings))).outcome
            for _ in range(2)
        ]
        (body,) = peer.taken()
    assert outcomes == ["unknown", "sent"] and call_task.repeatable
    assert body["type"] == "call.task"
    assert body["data"]["task"] == str(message) and body["data"]["phone"] == "+79161234567"
    assert body["data"]["text"] == "Hello, this is for you.\n"


@pytest.mark.parametrize("outcome", ["reached", "not_reached", "refused", "call_back"])
async def test_what_came_of_it_is_done_with_its_outcome(call_task: CallTask, outcome: str) -> None:
    (report,) = await back(call_task, "call.done", {"task": str(TASK), "outcome": outcome, "duration_seconds": 95})
    assert (report.what, report.message) == ("done", TASK)
    assert report.properties == {"outcome": outcome, "duration_seconds": 95}


@pytest.mark.parametrize(("outcome", "also"), [("do_not_call", "unsubscribed"), ("wrong_number", "bounced")])
async def test_an_outcome_may_end_calls_for_good(call_task: CallTask, outcome: str, also: str) -> None:
    first, second = await back(call_task, "call.done", {"task": str(TASK), "outcome": outcome})
    assert (first.what, second.what) == ("done", also) and first.id != second.id


async def test_an_outcome_told_twice_is_the_same_report(call_task: CallTask) -> None:
    told = {"task": str(TASK), "outcome": "reached"}
    at = datetime.now(UTC)
    assert await back(call_task, "call.done", told, at=at) == await back(call_task, "call.done", told, at=at)


async def test_an_outcome_that_somebody_else_signed_is_not_believed(call_task: CallTask) -> None:
    with pytest.raises(Forged):
        await back(
            call_task, "call.done", {"task": str(TASK), "outcome": "do_not_call"},
            secret="whsec_YW5vdGhlciBzZWNyZXQsIG9mIHNvbWVib2R5IGVsc2UsIGxvbmc=",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("type", "data", "says"),
    [
        ("call.done", {"task": str(TASK), "outcome": "bought everything"}, "outcome"),
        ("call.done", {"outcome": "reached"}, "task"),
        ("call.done", {"task": str(TASK), "outcome": "reached", "duration_seconds": -1}, "duration_seconds"),
        ("call.task", {"task": str(TASK)}, "call.done"),
    ],
)
async def test_an_outcome_that_cannot_be_read_says_which_field(
    call_task: CallTask, type: str, data: dict[str, Any], says: str
) -> None:
    with pytest.raises(Unreadable, match=says):
        await back(call_task, type, data)
