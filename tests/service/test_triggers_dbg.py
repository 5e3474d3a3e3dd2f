from tests.service.test_triggers_derive import *
async def test_dbg(shop):
    await a_busy_week(shop)
    _, d = await derive(shop.triggers.database, shop.world, at(days=-10), at(days=400))
    for x in d[:4]: print(x.field, "\nSTORED", x.stored, "\nDERIVED", x.derived)
    print(await shop.fetch("select properties from cdp.event where name='Subscription Requested' limit 1"))
    from collections import Counter
    print(Counter((x.field) for x in d))
