"""Strategies for condition documents: every kind with every operator, on values that meet those of `events`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TEXTS = ["Kazan", "KAZAN", "Straße", "STRASSE", "Ёлка", "ёлка", "\u212aazan", "", "true", "12", "12.50", "a'b%_\\c"]
DATES = ["2024-06-01", "2024-06-01T10:00:00Z", "2024-06-02T00:30:00+03:00", "2024-99-01", "20240601"]
SCALARS = st.sampled_from([*TEXTS, *DATES, 1, 12, 12.5, 1500, True])


def some(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional or {})


NUMBERS = st.sampled_from([0, 1, 2, 12, 12.5, 1500])
ORDERED = st.one_of(NUMBERS, st.sampled_from(["2024-06-01", "2024-06-01T10:00:00Z"]))
DURATIONS = st.sampled_from(["1h", "30d", "180d"])  # the windows on whose edges the events lie
COUNTS = st.integers(0, 3)


def between(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=2, max_size=2).map(sorted)


def operators(single: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """One operator, sometimes two."""
    one = st.one_of([value.map(lambda v, n=name: {n: v}) for name, value in single.items()])
    return st.one_of(one, one, st.tuples(one, one).map(lambda two: {**two[0], **two[1]}))


COMPARISONS = operators(
    {
        **dict.fromkeys(("eq", "ne", "contains", "prefix"), SCALARS),
        **dict.fromkeys(("gt", "gte", "lt", "lte"), ORDERED),
        "in": st.lists(SCALARS, min_size=1, max_size=3),
        "between": between(NUMBERS),
        "exists": st.booleans(),
    }
)
FIGURES = operators({**dict.fromkeys(("eq", "ne", "gt", "gte", "lt", "lte"), NUMBERS), "between": between(NUMBERS)})
AGES = operators(dict.fromkeys(("gt", "gte", "lt", "lte"), DURATIONS))
WHERES = st.dictionaries(
    st.sampled_from(["coupon", "total", "product_id", "price", "products.category", "coupon.city"]),
    COMPARISONS,
    min_size=1,
    max_size=2,
)
EVENT_NAMES = st.sampled_from(
    ["Order Completed", "Order Completed", "Product Viewed", "Product Added", "Nobody Does This"]
)
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "trait": st.dictionaries(
        st.sampled_from(["city", "city", "year", "city.city", "none"]), COMPARISONS, min_size=1, max_size=2
    ),
    "cart": st.one_of(
        some({"not_empty": st.booleans()}),
        some({"total": FIGURES}),
        some({"has": st.dictionaries(st.sampled_from(["category", "price"]), COMPARISONS, min_size=1, max_size=1)}),
    ),
    "orders": st.one_of(
        some({"count": FIGURES}),
        some({"total": FIGURES}),
        some({"average": FIGURES}),
        some({"last": st.one_of(some({"before": DURATIONS}), some({"within": DURATIONS}))}),
    ),
    "days_since_order": operators({n: st.sampled_from([0, 29, 30, 180]) for n in ("eq", "gt", "gte", "lt", "lte")}),
    "later_than_own_rhythm": st.booleans(),
    "did": some(
        {"event": EVENT_NAMES},
        {
            "at_least": st.integers(0, 2),
            "at_most": st.integers(2, 3),
            "within": DURATIONS,
            "where": WHERES,
            "same": st.sampled_from(["product_id", "product_id", "coupon.city"]),
        },
    ),
    "did_not": some({"event": EVENT_NAMES}, {"within": DURATIONS, "where": WHERES}),
    "bought": st.tuples(
        st.sampled_from(["category", "category", "product_id", "price", "quantity"]),
        COMPARISONS,
        some({}, {"price": COMPARISONS, "within": DURATIONS, "at_least": st.integers(1, 3)}),
    ).map(lambda parts: {**parts[2], parts[0]: parts[1]}),
    "consent": st.dictionaries(
        st.sampled_from(["email", "sms"]),
        st.one_of(
            st.sampled_from(["requested", "granted", "confirmed", "withdrawn", "complained"]),
            some({"is": st.sampled_from(["confirmed", "withdrawn"]), "topic": st.just("news")}),
        ),
        min_size=1,
    ),
    "reachable": st.sampled_from([{"any": ["email", "sms"]}, {"all": ["email"]}, {"all": ["sms"], "any": ["email"]}]),
    "engagement": some({"email": some({"opened": some({}, {"within": DURATIONS, "at_least": st.integers(1, 2)})})}),
    "age_in_base": AGES,
    "local_time": st.sampled_from([["12:00", "14:00"], ["13:00", "24:00"], ["21:00", "09:00"], ["19:00", "21:00"]]).map(
        lambda b: {"between": b}
    ),
    "holiday": st.booleans(),
}


def leaf(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(names).flatmap(lambda name: LEAVES[name].map(lambda parameters: {name: parameters}))


CONDITIONS = st.recursive(
    leaf(list(LEAVES)),
    lambda inner: st.one_of(
        inner.map(lambda one: {"not": one}),
        st.lists(inner, min_size=2, max_size=3).map(lambda many: {"all": many}),
        st.lists(inner, min_size=2, max_size=3).map(lambda many: {"any": many}),
    ),
    max_leaves=4,
)
