"""What every process tells of the deployment as a whole, against a real database and its log table."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import REGISTRY

from services.gauges import Gauges
from shared.bus.base import Outgoing
from shared.ids import uuid7
from tests.support.contexts import context_for


def told(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_what_stands_still_in_the_database_is_told(database_url: str) -> None:
    async with context_for(database_url, leases=False) as context:
        now = context.clock.now()
        await context.bus.append([Outgoing("events", b"k", b"{}")] * 4)
        async with context.database.transaction() as tx:
            await tx.execute("INSERT INTO platform.mark VALUES ($1, 'e', '{}')", now - timedelta(seconds=40))
            await tx.execute("DELETE FROM platform.watermark")
            await tx.execute("INSERT INTO platform.watermark (value) VALUES ($1)", now - timedelta(seconds=70))
            await tx.execute("UPDATE platform.deployment SET state = 'held'")
            for shard, seconds in (("a", 5), ("b", 300), ("c", 20)):
                await tx.execute(
                    "INSERT INTO triggers.outbox VALUES ($1, 1, '', clock_timestamp() - make_interval(secs => $2))",
                    shard,
                    seconds,
                )
            await tx.execute(
                "INSERT INTO platform.dead_letter (id, service, reason, bytes, at) VALUES ($1, 'profile', 'r', '', $2)",
                uuid7(now),
                now,
            )
        await Gauges(context, "7.7").sample()
    assert 40 <= told("dripline_mark_age_seconds") < 60
    assert 70 <= told("dripline_watermark_age_seconds") < 90
    assert told("dripline_held") == 1
    assert 300 <= told("dripline_outbox_oldest_seconds", schema="triggers") < 320
    assert told("dripline_outbox_oldest_seconds", schema="profile") == 0
    assert told("dripline_dead_letters_open", service="profile") == 1
    assert told("dripline_dead_letters_open", service="dispatch") == 0
    assert told("dripline_lag_records", group="profile", topic="events") == 4
    assert told("dripline_lag_partition", group="profile", topic="events") >= 0
    assert told("dripline_lag_partition", group="triggers", topic="profile-events") == -1
    assert told("dripline_dispatch_overdue_seconds", kind="marketing") == 0
    assert told("dripline_database_bytes") > 1 << 20
    assert 0 < told("dripline_database_connections") < told("dripline_database_connections_limit")
    assert told("dripline_data_dir_free_bytes") > 0
    assert told("dripline_build_info", version="7.7") == 1
    assert told("dripline_sampled_timestamp_seconds") >= now.timestamp()
