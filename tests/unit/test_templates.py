"""Templates: Liquid and MJML become what a person sees; what could hurt is refused or made harmless."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dispatch.documents import TemplateDocument, read_offers, read_templates
from services.dispatch.inputs import Purpose
from services.dispatch.links import Signer
from services.dispatch.segments import segments
from services.dispatch.templates import ALL_PARTS, PARTS, Template, TemplateFault, check, money, render
from services.dispatch.view import Offer, Shop, clean, example, how_long, view
from shared.facts.model import Cart, CartItem, Facts, Order, OrderLine

RULES = Path(__file__).parents[2] / "rules"
ORIGIN = "https://mail.shop.example"
SIGNER = Signer(b"secret", ORIGIN)
SHOP = Shop("Corner Shop", "https://shop.example", "RUB", "shop@shop.example", frozenset({"shop.example"}))
MESSAGE = uuid4()
NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
MOSCOW = ZoneInfo("Europe/Moscow")
LINKS = {
    "unsubscribe": SIGNER.url("unsubscribe", MESSAGE),
    "preferences": SIGNER.url("unsubscribe", MESSAGE),
    "confirm": SIGNER.url("confirm", MESSAGE),
}


def template(purpose: Purpose = "transactional", **parts: str) -> Template:
    return Template("test", 1, purpose, parts)


def rendered(part: str = "email", variables: dict[str, Any] | None = None, **parts: str):
    return render(template(**parts), part, variables or seen(), SIGNER, MESSAGE, SHOP.hosts)


def seen(facts: Facts | None = None, event: dict[str, Any] | None = None, offer: Offer | None = None) -> dict[str, Any]:
    return view(
        facts=facts,
        event=event or {},
        offer=offer,
        links=LINKS,
        shop=SHOP,
        run={"rule": "r", "entered_at": NOW},
        now=NOW,
        zone=MOSCOW,
    )


def person(**changes: Any) -> Facts:
    return Facts(profile=uuid4(), nodes=[], **changes)


def mjml(body: str) -> str:
    return f"<mjml><mj-body><mj-section><mj-column>{body}</mj-column></mj-section></mj-body></mjml>"


def fault(part: str = "email", variables: dict[str, Any] | None = None, **parts: str) -> str:
    with pytest.raises(TemplateFault) as raised:
        rendered(part, variables, **parts)
    return f"{raised.value.reason.code}: {raised.value.reason.text}"


def complaints(purpose: Purpose = "marketing", **parts: str) -> list[str]:
    return [f"{f.part}: {f.detail}" for f in check(purpose, parts)]


class TestTheShippedOnes:
    @pytest.mark.parametrize("document", list(read_templates(RULES / "templates")), ids=lambda d: d.name)
    def test_render_for_every_channel_they_have_a_text_for(self, document: TemplateDocument) -> None:
        variables = example(SHOP, LINKS)
        made = Template(document.name, 1, document.purpose, document.parts())
        for part in PARTS:
            if made.serves(part):
                result = render(made, part, variables, SIGNER, MESSAGE, SHOP.hosts)
                assert result.text.strip()
                assert "{{" not in result.text + result.html + result.subject

    @pytest.mark.parametrize("document", list(read_templates(RULES / "templates")), ids=lambda d: d.name)
    def test_have_every_link_of_the_page_in_the_text(self, document: TemplateDocument) -> None:
        made = Template(document.name, 1, document.purpose, document.parts())
        result = render(made, "email", example(SHOP, LINKS), SIGNER, MESSAGE, SHOP.hosts)
        on_page = {html.unescape(url) for url in re.findall(r'<a\b[^>]*href="([^"]*)"', result.html)}
        assert on_page and all(url in result.text for url in on_page)

    def test_a_cart_reminder_by_sms_fits_into_one_segment_and_a_cyrillic_name_doubles_it(self) -> None:
        document = next(d for d in read_templates(RULES / "templates") if d.name == "cart-reminder")
        made = Template("cart-reminder", 1, "marketing", document.parts())
        short = Signer(b"secret", "https://s.example")
        links = {"unsubscribe": short.url("unsubscribe", MESSAGE)}
        variables = example(SHOP, links)
        plain = render(made, "sms", variables, short, MESSAGE, SHOP.hosts)
        assert segments(plain.text).alphabet == "GSM-7"
        variables["cart"]["items"][0]["name"] = "Пластинка"
        assert segments(render(made, "sms", variables, short, MESSAGE, SHOP.hosts).text).alphabet == "UCS-2"

    def test_offers_have_a_code_for_each_form(self) -> None:
        offers = {offer.name: offer for offer in read_offers(RULES / "offers.yml")}
        codes = {form.code for form in offers["welcome"].forms.values()} | {offers["welcome"].code}
        assert len(codes) == 4


class TestMissingVariables:
    def test_withhold_with_the_name_of_the_variable(self) -> None:
        assert fault(subject="Hi", text="Dear {{ person.first_name }}") == (
            "missing-variable: test, text: person.first_name is undefined"
        )

    def test_may_have_a_default_or_be_asked_for(self) -> None:
        text = "{{ person.first_name | default: 'friend' }}{% if person.city %} of {{ person.city }}{% endif %}"
        assert rendered(subject="Hi", text=text).text == "friend\n"

    def test_an_offer_without_a_code_is_missing(self) -> None:
        assert fault(subject="Hi", text="{{ offer.code }}").startswith("missing-variable")

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("{{ persn.first_name }}", "text: there is no variable persn; did you mean person?"),
            ("{{ links.unsubscrbe }}", "text: links has no unsubscrbe; did you mean unsubscribe?"),
            ("{% for i in cart.itms %}{{ i.name }}{% endfor %}", "text: cart has no itms; did you mean items?"),
        ],
    )
    def test_a_name_that_cannot_be_is_found_before_activation(self, source: str, expected: str) -> None:
        assert expected in complaints("transactional", subject="Hi", text=source)

    def test_a_loops_own_variable_and_what_the_shop_sends_are_no_faults(self) -> None:
        source = "{% for item in cart.items %}{{ item.name }}{% endfor %}{% assign who = person.nick %}{{ who }}{{ event.x.y }}"
        assert complaints("transactional", subject="Hi", text=source) == []


class TestActivation:
    def test_a_marketing_text_needs_a_way_out_in_every_part(self) -> None:
        without = complaints(
            subject="Hi", text="x", mjml=mjml("<mj-text>x</mj-text>"), sms="x", messenger="x", push="x"
        )
        assert without == [
            f"{part}: a marketing text needs {{{{ links.unsubscribe }}}}"
            for part in ("text", "mjml", "sms", "messenger")
        ]
        assert complaints(subject="Hi", text="{{ links.unsubscribe }}") == []

    def test_a_confirmation_uses_nothing_that_somebody_typed(self) -> None:
        assert complaints(
            "confirmation", subject="{{ event.name }}", text="{{ links.confirm }} {{ person.first_name }}"
        ) == [
            "subject: a confirmation goes to whoever was typed in: it may use shop and links only, not event",
            "text: a confirmation goes to whoever was typed in: it may use shop and links only, not person",
        ]
        assert complaints("confirmation", subject="{{ shop.name }}", text="{{ links.confirm }}") == []
        assert complaints("confirmation", subject="Hi", text="press here") == [
            "text: a confirmation needs {{ links.confirm }}"
        ]

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({}, "a template needs at least one text"),
            ({"text": "{{ links.unsubscribe }}"}, "an e-mail needs a subject"),
            ({"subject": "x", "mjml": mjml("{{ links.unsubscribe }}")}, "an e-mail needs a text part"),
            ({"sms": "{% if %}"}, "Liquid:"),
            ({"sms": "{{ 'x' | explode }}{{ links.unsubscribe }}"}, "there is no filter explode"),
            ({"letter": "x"}, "there is no part letter"),
            ({"sms": "{% include 'secrets' %}{{ links.unsubscribe }}"}, "a template stands alone: include"),
        ],
    )
    def test_what_is_wrong_is_said(self, parts: dict[str, str], expected: str) -> None:
        assert any(expected.lower() in complaint.lower() for complaint in complaints(**parts))


class TestLinks:
    def test_go_by_way_of_a_click_and_the_same_link_has_one_number(self) -> None:
        page = mjml(
            '<mj-button href="https://shop.example/a">A</mj-button><mj-text><a href="https://shop.example/b?x=1&amp;y=2">b</a></mj-text>'
        )
        result = rendered(subject="Hi", text="see https://shop.example/a, or not", mjml=page)
        assert [(link.number, link.url) for link in result.links] == [
            (1, "https://shop.example/a"),
            (2, "https://shop.example/b?x=1&y=2"),
        ]
        click = SIGNER.url("click", MESSAGE, 1)
        assert f"see {click}, or not" in result.text
        assert f'href="{click}"' in result.html
        assert "shop.example/a" not in result.html

    def test_what_the_text_forgot_stands_at_its_end(self) -> None:
        result = rendered(
            subject="Hi", text="Hello", mjml=mjml('<mj-button href="https://shop.example/a">A</mj-button>')
        )
        assert result.text == f"Hello\n\n{SIGNER.url('click', MESSAGE, 1)}\n"

    def test_our_own_links_are_not_wrapped(self) -> None:
        result = rendered(subject="Hi", text="{{ links.unsubscribe }}")
        assert result.text.strip() == LINKS["unsubscribe"]
        assert result.links == []

    def test_that_lead_astray_are_refused(self) -> None:
        assert fault(
            subject="Hi", text="{{ event.target }}", variables={**seen(), "event": {"target": "https://evil.example/"}}
        ) == ("bad-text: a link leads to evil.example, which is not the shop's")
        page = mjml('<mj-text><a href="{{ event.target }}">x</a></mj-text>')
        for target in (
            "javascript:alert(1)",
            "data:text/html,x",
            "https://shop.example@evil.example/",
            "//evil.example",
        ):
            assert "bad-text" in fault(
                subject="Hi", text="x", mjml=page, variables={**seen(), "event": {"target": target}}
            )

    def test_that_the_marketer_wrote_may_lead_anywhere(self) -> None:
        result = rendered(subject="Hi", text="https://partner.example/{{ run.rule }}")
        assert result.links[0].url == "https://partner.example/r"

    def test_a_host_that_is_a_variable_is_not_the_marketers(self) -> None:
        assert "evil.example" in fault(
            subject="Hi", text="https://{{ event.host }}/", variables={**seen(), "event": {"host": "evil.example"}}
        )

    def test_the_page_has_a_pixel_that_tells_that_it_was_opened(self) -> None:
        result = rendered(subject="Hi", text="Hello", mjml=mjml("<mj-text>Hello</mj-text>"))
        assert SIGNER.url("open", MESSAGE) in result.html
        assert result.urls["open"] == SIGNER.url("open", MESSAGE)


class TestHostileInput:
    nasty = "<script>alert(1)</script>\r\nBcc: everyone@example.com\u202e http://evil.example {{ shop.name }}"

    def test_is_escaped_on_the_page_and_stays_one_line(self) -> None:
        variables = seen(person(traits={"first_name": self.nasty}))
        result = rendered(
            subject="Hi {{ person.first_name }}",
            text="{{ person.first_name }}",
            variables=variables,
            mjml=mjml("<mj-text>{{ person.first_name }}</mj-text>"),
        )
        assert "<script" not in result.html
        assert "\n" not in result.subject and "\r" not in result.subject
        assert "evil. example" in result.text and "http" not in result.text
        assert "{{ shop. name }}" in result.text  # what a person typed is not Liquid

    def test_mjml_in_a_name_stays_text(self) -> None:
        variables = seen(person(traits={"first_name": "</mj-text><mj-include path='/etc/passwd'/>"}))
        result = rendered(
            subject="Hi", text="x", mjml=mjml("<mj-text>{{ person.first_name }}</mj-text>"), variables=variables
        )
        assert "&lt;mj-include" in result.html and "root:" not in result.html

    def test_long_names_are_cut(self) -> None:
        assert len(clean("x" * 10_000, SHOP)) == 200

    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.example/x",
            "javascript:x",
            "https://shop.example/\u0000",
            "https://a@shop.example/",
            "x" * 3000,
        ],
    )
    def test_links_of_events_lead_to_the_shop_or_nowhere(self, url: str) -> None:
        assert clean({"url": url, "name": "n"}, SHOP) == {"name": "n"}
        assert clean({"url": "https://shop.example/p/1"}, SHOP) == {"url": "https://shop.example/p/1"}

    @pytest.mark.parametrize(
        "bomb",
        [
            "{% for a in (1..100000) %}{% for b in (1..100000) %}x{% endfor %}{% endfor %}",
            "{% assign s = 'xxxxxxxxxx' %}{% for i in (1..200) %}{% assign s = s | append: s %}{% endfor %}{{ s }}",
            "{% for i in (1..20000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
        ],
    )
    def test_bombs_stop(self, bomb: str) -> None:
        assert fault(subject="Hi", text=bomb).startswith("bad-text")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.dictionaries(
            st.text(max_size=10),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(max_size=40) | st.integers(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=5,
            ),
            max_size=4,
        )
    )
    def test_whatever_an_event_holds_can_be_shown(self, event: dict[str, Any]) -> None:
        variables = seen(event=event)
        text = "{% for pair in event %}{{ pair[0] }}={{ pair[1] }};{% endfor %}."
        result = rendered("sms", variables, sms=text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", result.text)


class TestTheView:
    item = CartItem(
        product_id="p-1",
        quantity=D(2),
        price=D("750.00"),
        added_at=NOW - timedelta(hours=2),
        product={"name": "Kind of Blue", "url": "https://evil.example"},
    )

    def test_a_cart_has_items_with_links_that_work_and_how_long_they_lie_there(self) -> None:
        cart = Cart(items=[self.item], total=D("1500.00"), changed_at=NOW - timedelta(hours=2, minutes=20))
        item = "{{ i.quantity }} {{ i.name }} {{ i.total | money: shop.currency }} {{ i.url }}"
        text = "{% for i in cart.items %}" + item + "{% endfor %} {{ cart.lying }}"
        result = rendered("sms", seen(person(cart=cart)), sms=text)
        assert result.text == f"2 Kind of Blue 1,500 RUB {SIGNER.url('click', MESSAGE, 1)} 2 hours"
        assert result.links[0].url == "https://shop.example"

    def test_orders_count_what_was_paid(self) -> None:
        def order(key: str, days: int, total: str | None, **changes: Any) -> Order:
            at = NOW - timedelta(days=days)
            return Order(key=key, node=uuid4(), at=at, learned_at=at, total=D(total) if total else None, **changes)

        line = OrderLine(product_id="p-9", quantity=D(1), product={"name": "Needle"})
        orders = [
            order("1", 40, "1000", refunded=D(100)),
            order("2", 10, "500", lines=[line]),
            order("3", 5, None),
            order("4", 1, "9", cancelled=True),
        ]
        figures = "{{ orders.count }} {{ orders.total }} {{ orders.average }}"
        text = figures + " {{ orders.last.days_ago }} {{ orders.last.items.first.name }}"
        assert rendered("sms", seen(person(orders=orders)), sms=text).text == "2 1400 700.00 10 Needle"

    def test_moments_are_in_the_persons_zone(self) -> None:
        assert rendered("sms", sms='{{ run.entered_at | date: "%H:%M" }}').text == "12:00"

    def test_durations_in_words(self) -> None:
        words = [how_long(timedelta(minutes=m)) for m in (0, 1, 59, 60, 150, 1440, 4400)]
        assert words == ["a moment", "a minute", "59 minutes", "an hour", "2 hours", "a day", "3 days"]

    def test_money_as_it_is_written(self) -> None:
        assert [money(D("1500.00")), money("12.5"), money(0, "RUB"), money(1234567)] == [
            "1,500",
            "12.50",
            "0 RUB",
            "1,234,567",
        ]


class TestTokens:
    def test_open_only_what_they_were_made_for(self) -> None:
        token = SIGNER.token("unsubscribe", MESSAGE)
        read = SIGNER.read("unsubscribe", token)
        assert read is not None and read.message == MESSAGE
        assert SIGNER.read("confirm", token) is None
        assert SIGNER.read("click", token) is None

    def test_of_another_deployment_are_refused(self) -> None:
        assert Signer(b"other", ORIGIN).read("confirm", SIGNER.token("confirm", MESSAGE)) is None

    @given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{42}", fullmatch=True))
    def test_that_somebody_made_up_are_refused(self, token: str) -> None:
        assert SIGNER.read("confirm", token) is None

    def test_a_bit_changed_anywhere_is_noticed(self) -> None:
        token = SIGNER.token("click", MESSAGE, 3)
        changed = [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(len(token) - 1)]
        assert all(SIGNER.read("click", other) is None for other in changed)


def test_every_part_of_a_template_document_is_one_that_channels_know() -> None:
    fields = set(TemplateDocument.model_fields) - {"name", "title", "purpose"}
    assert fields == set(ALL_PARTS)
