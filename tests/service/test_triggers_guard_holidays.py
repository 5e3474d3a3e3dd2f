"""A guard that asks for holidays looks at the calendar that rules look at, as of the claim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from shared.events import Guard
from shared.holidays import add_holidays
from tests.support.dispatch import Stage
from tests.support.dispatch import stage as on_stage


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path) as made:
        yield made


async def test_a_letter_for_working_days_is_withheld_on_a_holiday(stage: Stage) -> None:
    anna = await stage.customer("anna", "email")
    await stage.learn(stage.product(user=anna))
    now = stage.clock.now()
    guard = Guard(since=now, conditions=[{"holiday": False}])
    for days, state in (([now.date()], "withheld"), ([], "sent")):
        async with stage.context.database.transaction() as tx:
            await add_holidays(tx, days, now, "test", now)
        [message] = await stage.deliver(stage.intent(anna, guard=guard))
        assert message["state"] == state, message["reason"]
        assert ("holiday" in (message["reason"] or "")) is (state == "withheld")
        stage.clock.set(now := now + timedelta(seconds=1))
