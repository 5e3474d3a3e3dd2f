"""HTTP in and out of dispatch: the management API and the inbox. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter

from services.dispatch.api import adapters as adapters_api
from services.dispatch.api import channels, inbox, messages, offers, suppressions, switches, templates
from services.dispatch.channels.base import Adapter
from services.dispatch.links import Signer
from services.dispatch.subscriptions import Subscriptions
from services.dispatch.view import Shop
from shared.service import Context


def routers(
    context: Context,
    adapters: Mapping[str, type[Adapter]],
    signer: Signer,
    shop: Shop,
    subscriptions: Subscriptions,
    desk: adapters_api.Desk,
) -> list[APIRouter]:
    """All routers that need a key (the inbox only sometimes)."""
    return [
        messages.router(context, signer),
        templates.router(context, signer, shop),
        offers.router(context),
        channels.router(context, adapters),
        switches.router(context),
        suppressions.router(context, adapters, subscriptions),
        adapters_api.router(desk),
        inbox.router(context, adapters, signer),
    ]
