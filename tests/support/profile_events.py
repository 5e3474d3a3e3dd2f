"""Events of a small shop for hypothesis: few people, few moments, many coincidences."""

from __future__ import annotations

from hypothesis import strategies as st

from shared.events import Event
from tests.support.profile_feed import event

IDS = {
    "anonymous_id": ["a-1", "a-2", "a-3"],
    "user_id": ["u-1", "u-2"],
    "card": ["c-1", "c-2"],
    "email": ["one@example.com", "two@example.com"],
    "phone": ["+79161234567"],
}
PRODUCTS = ["p-1", "p-2", "p-3"]


# A browser that two people use, seen again and again: whose it is hangs on which observation was first.
SHARED = {"anonymous_id": ["a-1"], "user_id": ["u-1", "u-2"]}


@st.composite
def some_ids(draw: st.DrawFn, trust: str) -> dict[str, str]:
    if trust != "public" and draw(st.booleans()):
        return {kind: draw(st.sampled_from(values)) for kind, values in SHARED.items()}
    kinds = draw(st.lists(st.sampled_from(sorted(IDS)), min_size=1, max_size=3, unique=True))
    if trust == "public" and draw(st.booleans()):
        kinds.append("anonymous_id")
    if trust == "signed":
        kinds += ["user_id", "anonymous_id"]
    return {kind: draw(st.sampled_from(IDS[kind])) for kind in dict.fromkeys(kinds)}


lines = st.lists(
    st.fixed_dictionaries(
        {"product_id": st.sampled_from(PRODUCTS), "price": st.sampled_from([10, 25.5])},
        optional={"quantity": st.integers(1, 3)},
    ),
    max_size=3,
)


@st.composite
def body(draw: st.DrawFn, trust: str) -> tuple[str, dict, dict]:
    """Name, properties and traits of an event that a source of this trust may send."""
    kinds = ["cart", "cart", "view", "order", "look", "traits", "requested"]
    if trust == "secret":
        kinds += ["order", "refund", "granted", "unsubscribed"]
    kind = draw(st.sampled_from(kinds))
    if kind == "cart":
        properties = {"product_id": draw(st.sampled_from(PRODUCTS)), "price": 10, "quantity": draw(st.integers(1, 3))}
        return draw(st.sampled_from(["Product Added", "Product Added", "Product Removed"])), properties, {}
    if kind == "view":
        return "Cart Viewed", {"products": draw(lines)}, {}
    if kind == "order":
        name = draw(st.sampled_from(["Order Completed"] * 4 + ["Order Updated", "Order Cancelled"]))
        key, total = draw(st.sampled_from(["o-1", "o-2"])), draw(st.sampled_from([None, 50, 75.25]))
        return name, {"order_id": key, "products": draw(lines), "total": total}, {}
    if kind == "refund":
        properties = {"order_id": draw(st.sampled_from(["o-1", "o-3"])), "products": draw(lines)}
        properties["total"] = draw(st.sampled_from([None, 5]))
        properties["refund_id"] = draw(st.sampled_from([None, "r-1"]))
        return "Order Refunded", properties, {}
    if kind == "traits":
        names = st.sampled_from(["city", "birthday", "timezone"])
        values = st.sampled_from(["Kazan", "Europe/Moscow", "1990-02-28", None, 5])
        return "Identify", {}, draw(st.dictionaries(names, values, min_size=1, max_size=3))
    if kind == "look":
        return "Product Viewed", {"product_id": "p-1"}, {}
    name = {"requested": "Subscription Requested", "granted": "Consent Granted", "unsubscribed": "Unsubscribed"}[kind]
    properties = {"channel": "email", "address": draw(st.sampled_from(IDS["email"]))}
    if draw(st.booleans()):
        properties["topics"] = draw(st.lists(st.sampled_from(["news", "offers"]), min_size=1, max_size=2, unique=True))
    return name, properties, {}


@st.composite
def one_event(draw: st.DrawFn, number: int) -> Event:
    trust = draw(st.sampled_from(["public", "public", "signed", "secret", "secret", "secret"]))
    ids = draw(some_ids(trust))
    name, properties, traits = draw(body(trust))
    if "address" in properties:
        ids["email"] = properties["address"]
    # Few different moments, so that many are equal; an alias is the only way to join two user ids.
    at = draw(st.integers(0, 6)) * 3600
    alias = trust == "secret" and name == "Product Viewed" and draw(st.integers(0, 5)) == 0
    pairs = list(ids.items()) + ([("user_id", "u-1"), ("user_id", "u-2")] if alias else [])
    return event(
        name,
        f"m-{number}",
        at=at,
        received=7 * 3600 + number,
        trust=trust,
        ids=list(dict.fromkeys(pairs)),
        properties=properties,
        traits=traits,
        type="alias" if alias else None,
    )
