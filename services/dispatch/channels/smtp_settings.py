"""What the SMTP adapter is told: by API (`SmtpSettings`), or by SMTP_URL alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import pydantic
from pydantic import ConfigDict, Field, SecretStr, field_validator

from services.dispatch.channels.base import AdapterSettings
from services.dispatch.channels.dkim_signing import BadKey, private_key

# *opportunistic*: STARTTLS where the server offers it; what plain `smtp://` in SMTP_URL means.
Security = Literal["tls", "starttls", "opportunistic", "none"]
PORTS: dict[str, int] = {"tls": 465, "starttls": 587, "opportunistic": 25, "none": 25}
_SCHEMES: dict[str, Security] = {"smtps": "tls", "smtp+starttls": "starttls", "smtp": "opportunistic"}
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*/=?^_`{|}~-]+(?:\+[A-Za-z0-9.-]+)?@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_DOMAIN = r"^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$"
# What a return path's token takes of the 64 characters before the @ (RFC 5321 §4.5.3.1.1), the plus sign with it.
_TOKEN_LENGTH = 43


class SmtpSettings(AdapterSettings):
    """How letters leave, what signs them, and where what comes back goes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Default: 465 for tls, 587 for starttls, 25 for none."""
    security: Literal["tls", "starttls", "none"] = "starttls"
    """`tls` from the first byte; `starttls` or nothing is sent; `none` for a server that stands beside this one."""
    username: Annotated[str, Field(max_length=320)] = ""
    password: SecretStr | None = None
    authority: Annotated[str, Field(max_length=100_000)] = ""
    """PEM: the certificates that vouch for the server, if it is none that the system trusts."""

    sender: str = ""
    """Address in From. Default: SMTP_FROM."""
    return_path: str = ""
    """Mailbox to which bounces go, such as bounces@mail.shop.example: each letter says it with a token of its own,
    `bounces+<token>@…`. Default: the sender's address, and nothing is read back."""
    bounce_key: SecretStr | None = None
    """Signs these tokens; what hands bounces to `/webhooks/smtp` shows it. At least 16 characters."""
    bounce_folder: Annotated[str, Field(max_length=1_000)] = ""
    """A Maildir on this machine's disk from which bounces are read, besides those that are handed to `/webhooks/smtp`."""
    delivery_reports: bool = False
    """Ask servers to report that a letter was delivered (RFC 3461), where they can."""

    dkim_domain: Annotated[str, Field(pattern=_DOMAIN, max_length=253)] | Literal[""] = ""
    """Default: the sender's domain."""
    dkim_selector: Annotated[str, Field(pattern=_DOMAIN, max_length=63)] | Literal[""] = ""
    dkim_key: SecretStr | None = None
    """PEM: a private key, RSA of 1024 bits or more, or ed25519. Its public half lies at <selector>._domainkey.<domain>."""

    @field_validator("sender", "return_path")
    @classmethod
    def _one_address(cls, value: str) -> str:
        if value and not _ADDRESS.fullmatch(value):
            raise ValueError("is not an e-mail address such as shop@shop.example")
        return value

    @field_validator("return_path")
    @classmethod
    def _room_for_a_token(cls, value: str) -> str:
        if "+" in value:
            raise ValueError("must have no + before the @: the token stands behind one")
        if len(value.partition("@")[0]) + _TOKEN_LENGTH > 64:
            raise ValueError("may have 21 characters before the @: the token needs the rest")
        return value

    @field_validator("bounce_folder")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        if value and (not value.startswith("/") or ".." in value.split("/") or "\0" in value):
            raise ValueError("must be a whole path such as /var/mail/bounces")
        return value

    @field_validator("bounce_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters")
        return value

    @field_validator("dkim_key")
    @classmethod
    def _key_that_signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                private_key(value.get_secret_value())
            except BadKey as problem:
                raise ValueError(str(problem)) from None
        return value

    @field_validator("authority")
    @classmethod
    def _certificates(cls, value: str) -> str:
        if value and "-----BEGIN CERTIFICATE-----" not in value:
            raise ValueError("must be certificates in PEM")
        return value

    @pydantic.model_validator(mode="after")
    def _whole(self) -> SmtpSettings:
        if (self.password is not None) != bool(self.username):
            raise ValueError("username and password belong together")
        if self.username and self.security == "none":
            raise ValueError("a password goes over an encrypted line only: security must be tls or starttls")
        if bool(self.return_path) != (self.bounce_key is not None):
            raise ValueError("return_path and bounce_key belong together")
        if self.bounce_folder and self.bounce_key is None:
            raise ValueError("bounce_folder needs return_path and bounce_key")
        if (self.dkim_key is not None) != bool(self.dkim_selector):
            raise ValueError("dkim_selector and dkim_key belong together")
        return self


@dataclass(frozen=True)
class Server:
    """A mail server and how it is spoken to: what a kept connection was made with."""

    host: str
    port: int
    security: Security
    username: str = ""
    password: str = ""
    authority: str = ""
    # Told by API: whoever tells it names a host, so it must be a public one or lie in OUTSIDE_ALLOW.
    guarded: bool = False

    def __repr__(self) -> str:
        return f"Server({self.host}:{self.port}, {self.security})"


def server_of(settings: SmtpSettings) -> Server:
    """The server that the settings by API name."""
    return Server(
        host=settings.host,
        port=settings.port or PORTS[settings.security],
        security=settings.security,
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password else "",
        authority=settings.authority,
        guarded=True,
    )


def server_at(url: str) -> Server:
    """The server of an SMTP_URL, which `shared.settings` has judged. With a password in it, `smtp://` takes no open line
    except to this machine itself."""
    parts = urlsplit(url)
    security = _SCHEMES[parts.scheme]
    host = parts.hostname or ""
    if security == "opportunistic" and parts.username and host not in ("127.0.0.1", "::1", "localhost"):
        security = "starttls"
    return Server(
        host=host,
        port=parts.port or PORTS[security],
        security=security,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )
