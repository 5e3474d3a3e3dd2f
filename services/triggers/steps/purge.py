"""`purge`: asks for a contact to be forgotten that nobody ever confirmed."""

from __future__ import annotations

from typing import Any, Literal

from services.triggers.steps.base import Answer, End, Here, Next, Step
from shared.channels import ADDRESS_KIND
from shared.conditions.fields import Strict
from shared.events import internal_event
from shared.identifiers import Identifier


class Parameters(Strict):
    """`{contact: unconfirmed}`: the address that the run is about."""

    contact: Literal["unconfirmed"]


class Purge(Step):
    """Publishes *Contact Purged*; the profile service erases the address unless anybody ever confirmed or asserted it."""

    key = "purge"
    parameters_type = Parameters
    parameters: Parameters
    examples = [{"contact": "unconfirmed"}]

    def begin(self, here: Here) -> Answer:
        run = here.run
        asked = run.addressed
        if asked is None or asked.node is None:
            return End("there is no requested address to purge")
        status = next((one.status for one in here.facts.addresses if one.node == asked.node), None)
        here.seen.append({"address": str(asked.node), "status": status})
        if status != "claimed":
            return Next()
        if run.ghost:
            return Next()
        properties: dict[str, Any] = {"contact": "unconfirmed", "channel": asked.channel, "address": asked.address}
        properties |= {"run_id": str(run.id), "rule": here.rule.name, "step": self.id}
        identifier = Identifier(kind=ADDRESS_KIND[asked.channel], value=asked.address, node=asked.node)
        here.cancel_intents("the contact was purged")
        here.effects.append(
            internal_event(
                "Contact Purged",
                key=f"{run.id}/{self.id}",
                origin=asked.node,
                at=here.now,
                ids=[identifier],
                properties=properties,
                hops=run.hops + 1,
            )
        )
        run.forget_address()
        return Next()
