"""A simulated shop: customers with habits, response and fatigue of their own, who use the public HTTP API only.

    catalogue.py  what the shop sells                 people.py    who its customers are
    habits.py     what a visit to the site looks like  response.py  what a message does to a person (the hidden truth)
    tracking.py   the shapes of the events             shop.py      the shop's life: visits, orders, tills, refunds
    api.py        the shop's side of the HTTP API      driver.py    the pipe to the process that owns the clock
    life.py       the loop over the slices of virtual time

It imports httpx and the standard library, nothing of the product. Money is in whole roubles, times are aware datetimes,
and all chance comes from `random.Random` seeded by the run's seed: the same seed and the same messages received make
the same life.
"""
