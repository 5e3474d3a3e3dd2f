"""SMS through a carrier that exists only in tests: told by API where it is, asked what became of a message, and calling
back with a signature."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pydantic

from services.dispatch.channels.base import (
    Adapter,
    AdapterSettings,
    Call,
    Exchange,
    Forged,
    Received,
    Report,
    Result,
    Unreadable,
)
from shared.outside import FAILED, NOT_SENT, Client, retry_after


class CarrierSettings(AdapterSettings):
    """Where it is and who we are."""

    url: str = pydantic.Field(pattern=r"^https?://")
    account: str = "shop"
    token: pydantic.SecretStr
    signing_key: pydantic.SecretStr | None = None


class Carrier(Adapter):
    """Posts JSON. A repeat reaches the person twice, but the carrier can be asked, so unknown means: ask."""

    name = "carrier"
    channel = "sms"
    address_kind = "phone"
    part = "sms"
    settings_type = CarrierSettings
    timeout = timedelta(seconds=3)
    sessions = 4

    _client: Client | None = None

    async def send(self, exchange: Exchange) -> Result:
        settings: CarrierSettings = exchange.settings
        body = {"id": str(exchange.message), "to": exchange.address, "text": exchange.rendered.text}
        exchange.check_start()
        try:
            answer = await self._http().post(f"{settings.url}/messages", json=body, headers=self._proof(settings))
        except NOT_SENT as problem:
            return Result("retry", f"not reached: {type(problem).__name__}")
        except FAILED as problem:
            return Result("unknown", f"no answer: {type(problem).__name__}")
        if answer.status_code == 429:
            return Result("retry", "429", retry_after=retry_after(answer, exchange.at))
        if answer.status_code >= 500:
            return Result("unknown", str(answer.status_code))
        if answer.status_code != 200:
            return Result("failed", str(answer.status_code))
        said = answer.json()
        return Result("sent", "200", said["carrier_id"], Decimal(said["price"]) if "price" in said else None)

    async def ask(self, exchange: Exchange) -> Result | None:
        settings: CarrierSettings = exchange.settings
        answer = await self._http().get(
            f"{settings.url}/messages/{exchange.message}", headers=self._proof(settings), timeout=1.0
        )
        if answer.status_code == 404:
            return Result("retry", "the carrier does not know it")
        return Result("sent", "asked", answer.json()["carrier_id"]) if answer.status_code == 200 else None

    async def receive(self, call: Call) -> Received:
        settings: CarrierSettings = call.settings
        key = settings.signing_key.get_secret_value() if settings.signing_key else ""
        proof = hmac.new(key.encode(), call.body, hashlib.sha256).hexdigest()
        if not key or not hmac.compare_digest(proof, call.headers.get("x-signature", "")):
            raise Forged("the signature is wrong")
        try:
            return Received([_report(said) for said in json.loads(call.body)], body=b"thanks")
        except (ValueError, KeyError, TypeError) as problem:
            raise Unreadable(f"not a list of reports: {problem}") from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _http(self) -> Client:
        if self._client is None:
            self._client = self.world.http()
        return self._client

    @staticmethod
    def _proof(settings: CarrierSettings) -> dict[str, str]:
        return {"Authorization": f"Bearer {settings.token.get_secret_value()}"}


def _report(said: dict[str, Any]) -> Report:
    return Report(
        what=said["what"],
        id=said["id"],
        message=UUID(said["message"]) if "message" in said else None,
        provider_id=said.get("carrier_id", ""),
        address=said.get("address", ""),
        at=datetime.fromisoformat(said["at"]) if "at" in said else None,
        detail=said.get("detail", ""),
        charged=Decimal(said["charged"]) if "charged" in said else None,
        properties=said.get("properties", {}),
    )


ADAPTER = Carrier
