"""The hosts and ports in a URL that names servers: `postgresql://user:password@one:5432,two/db`, `kafka://one:9092,two:9092`."""

from __future__ import annotations

from urllib.parse import urlsplit

_ENCODE = "a special character in a user's name or password must be percent-encoded: / is %2F, @ is %40, # is %23"


def refuse_unusable(url: str) -> None:
    """A URL whose hosts a client could not even ask for.

    :raises ValueError: says what is wrong, never what stands there: it may be part of a password
    """
    try:
        hosts = urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        raise ValueError(f"an IPv6 address must stand in brackets; {_ENCODE}") from None
    for host in hosts.split(","):
        name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
        if (not name and port) or (name != host and not _is_port(port)):
            raise ValueError(f"must be host:port with a number from 1 to 65535 as the port; {_ENCODE}")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535
