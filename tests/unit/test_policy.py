"""May we? Consent, suppression, caps, quiet hours, kill switches, validity: each no with its reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatch.choice import Figures
from services.dispatch.consents import standing
from services.dispatch.decision import decide, draw_from, worth_rendering
from services.dispatch.inputs import (
    Address,
    Cap,
    Channel,
    ConsentRow,
    Contact,
    Decision,
    GuardVerdict,
    Inputs,
    Suppression,
    Switch,
    Text,
)
from services.dispatch.policy import DEFAULT_CAPS, quiet_until, window_start
from services.dispatch.reasons import Reason

NOON = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)  # 12:00 in Moscow
NIGHT = datetime(2026, 3, 10, 20, 0, tzinfo=UTC)  # 23:00 in Moscow
MAIL, PHONE = uuid4(), uuid4()


def row(state: str, at: datetime = NOON - timedelta(days=1), node: UUID = MAIL, **changes: Any) -> ConsentRow:
    values = {"id": uuid4(), "channel": "email", "topic": "marketing", "trust": 2, **changes}
    return ConsentRow(node=node, state=state, at=at, **values)


def address(*rows: ConsentRow, node: UUID = MAIL, status: str = "confirmed", **changes: Any) -> Address:
    return Address(node=node, status=status, consents=list(rows), **changes)


def email(*addresses: Address, **changes: Any) -> Channel:
    figures = Figures(D("0.35"), D("0.06"), D("0.02"))
    values = {"text": Text(cost=D("0.01")), "adapter": "smtp", "consent": "email", **changes}
    return Channel(name="email", unit_cost=D("0.01"), figures=figures, addresses=list(addresses), **values)


def sms(*addresses: Address, **changes: Any) -> Channel:
    figures = Figures(D("0.98"), D("0.03"), D("0.06"))
    values = {"text": Text(cost=D("1.00")), "adapter": "inbox-sms", "consent": "sms", "quiet": "21:00-09:00", **changes}
    return Channel(name="sms", unit_cost=D(1), figures=figures, addresses=list(addresses), **values)


def inputs(*channels: Channel, **changes: Any) -> Inputs:
    values: dict[str, Any] = {
        "message": uuid4(),
        "rule": uuid4(),
        "rule_name": "abandoned-cart",
        "purpose": "marketing",
        "topic": "marketing",
        "now": NOON,
        "valid_until": NOON + timedelta(days=1),
        "zone": "Europe/Moscow",
        "draw": D("0.5"),
        "value": D(450),
        "caps": DEFAULT_CAPS,
        "channels": list(channels),
    }
    return Inputs(**{**values, **changes})


def code(decision: Decision) -> str | None:
    return decision.reason.code if decision.reason else None


CONSENTED = address(row("confirmed"))


def test_a_confirmed_address_is_written_to() -> None:
    decision = decide(inputs(email(CONSENTED)))
    assert (decision.act, decision.channel, decision.address) == ("send", "email", MAIL)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "no-consent"),
        ([row("requested")], "no-consent"),
        ([row("confirmed", topic="news")], "no-consent"),
        ([row("confirmed", channel="sms")], "no-consent"),
        ([row("confirmed"), row("withdrawn", NOON)], "opted-out"),
        ([row("granted"), row("complained", NOON)], "opted-out"),
        ([row("confirmed"), row("withdrawn", NOON, topic="*")], "opted-out"),
    ],
)
def test_marketing_needs_consent_for_the_channel_and_the_topic(rows: list[ConsentRow], expected: str) -> None:
    assert code(decide(inputs(email(address(*rows))))) == expected


def test_a_transactional_message_needs_no_consent() -> None:
    decision = decide(inputs(email(address(row("withdrawn"))), purpose="transactional"))
    assert decision.act == "send"


def test_the_reason_of_an_opt_out_tells_when() -> None:
    decision = decide(inputs(email(address(row("confirmed"), row("withdrawn", NOON)))))
    assert decision.reason == Reason("opted-out", "email: unsubscribed at 2026-03-10 09:00 UTC")


class TestFoldingConsent:
    def test_of_two_rows_of_one_moment_the_more_restrictive_wins(self) -> None:
        rows = [row("withdrawn", NOON), row("confirmed", NOON)]
        assert not standing(rows, "email", "marketing").may_write
        assert not standing(rows[::-1], "email", "marketing").may_write

    def test_a_grant_by_a_secret_source_does_not_lift_an_opt_out(self) -> None:
        rows = [row("withdrawn"), row("granted", NOON)]
        assert standing(rows, "email", "marketing").state == "withdrawn"

    def test_a_pressed_button_lifts_an_opt_out(self) -> None:
        rows = [row("withdrawn"), row("confirmed", NOON)]
        assert standing(rows, "email", "marketing").may_write

    def test_nothing_lifts_a_complaint(self) -> None:
        rows = [row("complained"), row("confirmed", NOON), row("granted", NOON)]
        assert standing(rows, "email", "marketing").complained

    def test_another_request_takes_nothing_away(self) -> None:
        rows = [row("confirmed"), row("requested", NOON)]
        assert standing(rows, "email", "marketing").may_write

    def test_the_same_row_in_both_ledgers_counts_once(self) -> None:
        one = row("confirmed")
        assert standing([one, one], "email", "marketing") == standing([one], "email", "marketing")

    @given(
        st.permutations(
            [
                row("granted", NOON, id=UUID(int=1)),
                row("withdrawn", NOON + timedelta(hours=1), id=UUID(int=2)),
                row("granted", NOON + timedelta(hours=2), id=UUID(int=3)),
                row("confirmed", NOON + timedelta(hours=3), id=UUID(int=4)),
            ]
        )
    )
    def test_the_order_of_arrival_does_not_matter(self, rows: list[ConsentRow]) -> None:
        assert standing(rows, "email", "marketing").state == "confirmed"


class TestClaimedAddresses:
    claimed = address(row("confirmed"), status="claimed")

    @pytest.mark.parametrize("purpose", ["marketing", "transactional"])
    def test_to_a_claimed_address_nothing_goes(self, purpose: str) -> None:
        assert code(decide(inputs(email(self.claimed), purpose=purpose))) == "claimed"

    def test_but_the_confirmation_mail(self) -> None:
        decision = decide(inputs(email(self.claimed), purpose="confirmation", addressed=MAIL))
        assert decision.act == "send"

    def test_a_confirmation_mail_needs_the_address_of_a_request(self) -> None:
        assert code(decide(inputs(email(self.claimed), purpose="confirmation"))) == "no-address"

    def test_after_an_opt_out_one_may_ask_again_but_not_after_a_complaint(self) -> None:
        asked = {"purpose": "confirmation", "addressed": MAIL}
        assert decide(inputs(email(address(row("withdrawn"))), **asked)).act == "send"
        assert code(decide(inputs(email(address(row("complained"))), **asked))) == "opted-out"

    @pytest.mark.parametrize(
        "limited",
        [
            {"network_count": 20},
            {"source_count": 1000},
            {"purged_at": NOON - timedelta(days=29)},
            {"contacts": [Contact(uuid4(), NOON - timedelta(hours=n), "email", "confirmation", MAIL) for n in (1, 2)]},
        ],
    )
    def test_confirmation_mails_are_limited_by_network_source_address_and_after_a_purge(self, limited: Any) -> None:
        asked = {"purpose": "confirmation", "addressed": MAIL}
        assert code(decide(inputs(email(self.claimed), **asked, **limited))) == "limit"

    def test_thirty_days_after_a_purge_one_may_ask_again(self) -> None:
        asked = {"purpose": "confirmation", "addressed": MAIL, "purged_at": NOON - timedelta(days=30)}
        assert decide(inputs(email(self.claimed), **asked)).act == "send"


def test_a_suppressed_address_gets_nothing_and_another_one_is_taken() -> None:
    dead = address(row("confirmed"), suppression=Suppression("bounced: no such person", NOON))
    assert code(decide(inputs(email(dead), purpose="transactional"))) == "suppressed"
    other = uuid4()
    alive = address(row("confirmed", node=other), node=other)
    assert decide(inputs(email(dead, alive))).address == other


def test_of_several_addresses_the_confirmed_one_agreed_to_last_is_taken() -> None:
    def agreed(days: int, status: str) -> Address:
        node = UUID(int=days)
        return address(row("confirmed", NOON - timedelta(days=days), node), node=node, status=status)

    taken = decide(inputs(email(agreed(1, "asserted"), agreed(9, "confirmed"), agreed(5, "confirmed"))))
    assert taken.address == UUID(int=5)


class TestCaps:
    def sent(self, hours_ago: float, **changes: Any) -> Contact:
        values = {"channel": "email", "purpose": "marketing", "node": MAIL, **changes}
        return Contact(uuid4(), NOON - timedelta(hours=hours_ago), **values)

    def test_a_person_gets_two_marketing_messages_a_day(self) -> None:
        one, two = self.sent(1), self.sent(2)
        assert decide(inputs(email(CONSENTED), contacts=[one])).act == "send"
        decision = decide(inputs(email(CONSENTED), contacts=[one, two]))
        assert decision.reason == Reason("cap", "email: this person has had 2 of at most 2 marketing messages a day")

    def test_a_day_is_the_calendar_day_where_the_person_lives(self) -> None:
        yesterday = [self.sent(12.5), self.sent(13)]  # 23:30 and 23:00 in Moscow
        assert decide(inputs(email(CONSENTED), contacts=yesterday)).act == "send"
        in_london = decide(inputs(email(CONSENTED), contacts=yesterday, zone="America/New_York"))
        assert in_london.act == "send"  # 04:00–05:00 there: the day before, too
        in_tokyo = decide(inputs(email(CONSENTED), contacts=[self.sent(1), self.sent(8)], zone="Asia/Tokyo"))
        assert code(in_tokyo) == "cap"

    def test_and_four_a_week(self) -> None:
        week = [self.sent(24 * day) for day in (2, 3, 4, 6)]
        assert code(decide(inputs(email(CONSENTED), contacts=week))) == "cap"
        assert decide(inputs(email(CONSENTED), contacts=[*week[:3], self.sent(24 * 7.1)])).act == "send"

    def test_receipts_do_not_count_as_marketing(self) -> None:
        receipts = [self.sent(n, purpose="transactional") for n in range(3)]
        assert decide(inputs(email(CONSENTED), contacts=receipts)).act == "send"

    def test_an_address_keeps_its_cap_when_it_changes_hands(self) -> None:
        before = [self.sent(1, mine=False), self.sent(2, mine=False)]
        assert code(decide(inputs(email(CONSENTED), contacts=before))) == "cap"

    def test_a_cap_of_a_channel_counts_only_that_channel(self) -> None:
        texted = address(row("confirmed", node=PHONE, channel="sms"), node=PHONE)
        weekly = [Cap(scope="person", limit=1, per="7d")]
        history = [self.sent(48, channel="sms", node=PHONE)]
        decision = decide(inputs(email(CONSENTED), sms(texted, caps=weekly), contacts=history))
        assert decision.channel == "email"
        row_of_sms = next(a for a in decision.alternatives if a.channel == "sms")
        assert row_of_sms.reason is not None and "by sms" in row_of_sms.reason.text

    def test_the_message_itself_does_not_stand_in_its_own_way(self) -> None:
        given_inputs = inputs(email(CONSENTED))
        itself = [msgspec.structs.replace(self.sent(1), message=given_inputs.message), self.sent(2)]
        assert decide(msgspec.structs.replace(given_inputs, contacts=itself)).act == "send"


class TestQuietHours:
    texted = address(row("confirmed", node=PHONE, channel="sms"), node=PHONE)

    def test_at_night_an_sms_waits_for_the_morning(self) -> None:
        decision = decide(inputs(sms(self.texted), now=NIGHT))
        assert decision.act == "postpone"
        assert decision.until == datetime(2026, 3, 11, 6, 0, tzinfo=UTC)  # 09:00 in Moscow

    def test_at_night_an_email_goes_at_once(self) -> None:
        assert decide(inputs(email(CONSENTED), sms(self.texted), now=NIGHT)).channel == "email"

    def test_who_would_wake_up_to_a_worthless_message_is_left_in_peace(self) -> None:
        assert code(decide(inputs(sms(self.texted), now=NIGHT, value=D(1)))) == "not-worth-it"

    def test_what_is_no_longer_valid_in_the_morning_is_withheld(self) -> None:
        decision = decide(inputs(sms(self.texted), now=NIGHT, valid_until=NIGHT + timedelta(hours=2)))
        assert (decision.act, code(decision)) == ("withhold", "late")

    def test_no_consent_is_told_before_the_hour(self) -> None:
        assert code(decide(inputs(sms(address(node=PHONE)), now=NIGHT))) == "no-consent"

    @pytest.mark.parametrize(
        ("local", "until"),
        [
            ("2026-03-10 20:59:59", None),
            ("2026-03-10 21:00:00", "2026-03-11 09:00"),
            ("2026-03-11 00:00:00", "2026-03-11 09:00"),
            ("2026-03-11 08:59:59", "2026-03-11 09:00"),
            ("2026-03-11 09:00:00", None),
        ],
    )
    def test_the_ends_of_the_night(self, local: str, until: str | None) -> None:
        zone = ZoneInfo("Asia/Yekaterinburg")
        now = datetime.fromisoformat(local).replace(tzinfo=zone).astimezone(UTC)
        expected = datetime.fromisoformat(until).replace(tzinfo=zone) if until else None
        assert quiet_until(now, zone, "21:00-09:00") == expected

    def test_hours_within_one_day(self) -> None:
        zone = ZoneInfo("Europe/Moscow")
        assert quiet_until(NOON, zone, "11:00-13:00") == NOON + timedelta(hours=1)
        assert quiet_until(NOON, zone, "13:00-14:00") is None
        assert quiet_until(NOON, zone, "") is None

    def test_the_morning_comes_an_hour_earlier_when_clocks_go_forward(self) -> None:
        berlin = ZoneInfo("Europe/Berlin")
        evening = datetime(2026, 3, 28, 21, 0, tzinfo=UTC)  # 22:00 there; 9:00 is 07:00 UTC after the change
        assert quiet_until(evening, berlin, "21:00-09:00") == datetime(2026, 3, 29, 7, 0, tzinfo=UTC)

    def test_and_an_hour_later_when_they_go_back(self) -> None:
        berlin = ZoneInfo("Europe/Berlin")
        evening = datetime(2026, 10, 24, 20, 0, tzinfo=UTC)
        assert quiet_until(evening, berlin, "21:00-09:00") == datetime(2026, 10, 25, 8, 0, tzinfo=UTC)

    @given(
        st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
        st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Europe/Moscow"]),
        st.sampled_from(["21:00-09:00", "22:00-02:30", "01:30-02:15", "00:00-08:00"]),
    )
    def test_the_end_of_the_night_is_ahead_and_within_a_day(self, now: datetime, zone: str, hours: str) -> None:
        until = quiet_until(now, ZoneInfo(zone), hours)
        assert until is None or now < until <= now + timedelta(hours=25)


class TestTheWindowOfTheRule:
    texted = address(row("confirmed", node=PHONE, channel="sms"), node=PHONE)
    WEEKDAYS = {"days": ["mon..fri"], "hours": "09:00-22:00"}
    FRIDAY = datetime(2026, 3, 13, 18, 30, tzinfo=UTC)  # 21:30 in Moscow
    MONDAY = datetime(2026, 3, 16, 6, 0, tzinfo=UTC)

    def test_a_night_that_ends_outside_the_window_lasts_until_the_window_opens(self) -> None:
        night = inputs(sms(self.texted), now=self.FRIDAY, window=self.WEEKDAYS, valid_until=self.MONDAY)
        decision = decide(night)
        assert (decision.act, decision.until, code(decision)) == ("postpone", self.MONDAY, "quiet-hours")

    def test_a_window_that_opens_into_the_night_lasts_until_the_morning(self) -> None:
        early = {"days": ["sun", "mon"], "hours": "06:00-22:00"}
        now = datetime(2026, 3, 14, 9, 0, tzinfo=UTC)
        decision = decide(inputs(sms(self.texted), now=now, window=early, valid_until=self.MONDAY))
        assert (decision.until, code(decision)) == (datetime(2026, 3, 15, 6, 0, tzinfo=UTC), "outside-window")

    def test_a_closed_window_postpones_an_email_too(self) -> None:
        saturday = self.FRIDAY + timedelta(hours=15)
        decision = decide(inputs(email(CONSENTED), now=saturday, window=self.WEEKDAYS, valid_until=self.MONDAY))
        assert (decision.act, decision.until, code(decision)) == ("postpone", self.MONDAY, "outside-window")
        open_again = inputs(email(CONSENTED), now=self.MONDAY, window=self.WEEKDAYS, valid_until=self.MONDAY)
        assert decide(open_again).channel == "email"

    def test_hours_that_never_agree_are_withheld_as_late(self) -> None:
        at_night = {"hours": "22:00-23:00"}
        decision = decide(inputs(sms(self.texted), now=NIGHT, window=at_night))
        assert (decision.act, code(decision)) == ("withhold", "late")


class TestTheMessageAsAWhole:
    @pytest.mark.parametrize(
        ("switch", "expected"),
        [
            (Switch("all"), "switched-off"),
            (Switch("rule", "abandoned-cart"), "switched-off"),
            (Switch("channel", "email"), "switched-off"),
            (Switch("rule", "welcome"), None),
            (Switch("channel", "sms"), None),
        ],
    )
    def test_kill_switches(self, switch: Switch, expected: str | None) -> None:
        assert code(decide(inputs(email(CONSENTED), switches=[switch]))) == expected

    def test_a_message_that_is_too_late_is_withheld(self) -> None:
        assert code(decide(inputs(email(CONSENTED), valid_until=NOON - timedelta(seconds=1)))) == "late"

    def test_a_guard_that_fails_withholds_with_its_reason(self) -> None:
        ordered = GuardVerdict(holds=False, reason=Reason("guard", "Order Completed at 10:40"))
        assert decide(inputs(email(CONSENTED), guard=ordered)).reason == ordered.reason

    def test_a_person_who_is_gone_gets_nothing_and_nothing_is_weighed(self) -> None:
        decision = decide(inputs(email(CONSENTED), known=False))
        assert (code(decision), decision.alternatives) == ("gone", [])

    @pytest.mark.parametrize(
        ("stopped", "expected"),
        [
            ({"guard": GuardVerdict(holds=False, reason=Reason("guard", "Order Completed at 10:40"))}, "guard"),
            ({"valid_until": NOON - timedelta(seconds=1)}, "late"),
            ({"switches": [Switch("all", reason="a mistake")]}, "switched-off"),
            ({"problem": Reason("no-template", "there is no template x")}, "no-template"),
        ],
    )
    def test_what_is_withheld_says_what_each_channel_would_have_brought_or_what_else_stood_against_it(
        self, stopped: dict[str, Any], expected: str
    ) -> None:
        # email: (0.35 · 0.06 − 0.01) · 450 − 0.01 = 4.94, less 8 %; its text was never made
        decision = decide(inputs(email(CONSENTED, text=None), sms(address(node=PHONE), text=None), **stopped))
        assert (decision.act, code(decision), decision.channel) == ("withhold", expected, None)
        by_mail, by_sms = decision.alternatives
        assert (by_mail.net, by_mail.cost, by_mail.units) == (D("4.5448"), D("0.01"), None)
        assert by_mail.reason == decision.reason
        assert by_sms.reason is not None and by_sms.reason.code == "no-consent" and by_sms.net is not None

    def test_a_confirmation_mail_over_its_limit_says_what_it_would_have_cost(self) -> None:
        stopped = inputs(email(address(status="claimed")), purpose="confirmation", addressed=MAIL, purged_at=NOON)
        [row_of_mail] = decide(stopped).alternatives
        assert (row_of_mail.cost, row_of_mail.net) == (D("0.01"), None)
        assert row_of_mail.reason is not None and row_of_mail.reason.code == "limit"

    def test_a_ghost_is_withheld_but_the_whole_choice_is_made(self) -> None:
        decision = decide(inputs(email(CONSENTED), ghost=True))
        assert (decision.act, code(decision), decision.channel) == ("withhold", "ghost", "email")
        assert decision.alternatives[0].net is not None

    def test_only_the_channels_that_the_rule_names(self) -> None:
        decision = decide(inputs(email(CONSENTED), asked=["push"]))
        assert code(decision) == "not-asked"

    def test_a_channel_without_consent_is_rendered_for_its_row_and_one_that_was_not_asked_for_is_not(self) -> None:
        channels = [email(address(), text=None), sms(text=None)]
        assert worth_rendering(inputs(*channels)) == ["email"]
        assert worth_rendering(inputs(email(CONSENTED, text=None), asked=["sms"])) == []


def test_a_decision_computed_again_from_its_stored_inputs_is_the_same() -> None:
    texted = address(row("confirmed", node=PHONE, channel="sms"), node=PHONE)
    original = inputs(email(CONSENTED), sms(texted), contacts=[Contact(uuid4(), NOON, "sms", "marketing", PHONE)])
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(original)))
    again = msgspec.convert(stored, Inputs)
    assert again == original
    assert decide(again) == decide(original)


def test_draws_are_below_one() -> None:
    assert draw_from(0) == 0
    assert draw_from((1 << 53) - 1) < 1


def test_windows_begin_at_local_midnight_or_a_duration_ago() -> None:
    moscow = ZoneInfo("Europe/Moscow")
    assert window_start("day", NOON, moscow) == datetime(2026, 3, 9, 21, 0, tzinfo=UTC)
    assert window_start("7d", NOON, moscow) == NOON - timedelta(days=7)
