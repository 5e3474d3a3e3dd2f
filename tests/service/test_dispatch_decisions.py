"""From an intent to a choice on real PostgreSQL: what is sent, and why what is not sent is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.dispatch import Stage, cancelled
from tests.support.dispatch import stage as on_stage


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with on_stage(database_url, tmp_path) as made:
        yield made


async def test_a_cart_letter_goes_to_the_inbox_with_its_table_of_alternatives(stage: Stage) -> None:
    anna = await stage.customer("anna", "email")
    await stage.learn(stage.product(user=anna))
    intent = stage.intent(anna)
    [message] = await stage.deliver(intent)
    assert (message["state"], message["channel"], message["address"]) == ("sent", "email", "anna@example.com")
    assert "Kind of Blue" in message["subject"] and "1,500 RUB" in message["body"]
    assert message["cost"] == Decimal("0.01")
    assert (stage.inbox / "email" / "new" / str(intent.message)).exists()
    rows = {r["channel"]: r for r in await stage.owner.fetch("SELECT * FROM dispatch.alternative")}
    assert set(rows) == {"email", "sms", "push", "messenger", "call"}
    assert rows["sms"]["reason_code"] == "no-address"
    assert round(rows["email"]["net"], 1) == Decimal("4.5")
    [sent] = await stage.events("Email Sent")
    assert sent.origin == anna.node and sent.properties["message_id"] == str(intent.message)
