"""Who follows links without being a person: scanners, previews, privacy proxies. Their hits are kept, and told to
nobody."""

from __future__ import annotations

import re
from datetime import timedelta

# A page that is fetched this soon after the message was handed over is fetched by the receiver's own machinery.
TOO_SOON = timedelta(seconds=1)
_NAMES = re.compile(
    r"bot\b|bots\b|crawl|spider|preview|scan|slurp|monitor|headless|facebookexternalhit|whatsapp|telegrambot|"
    r"googleimageproxy|yahoomailproxy|safelinks|proofpoint|mimecast|barracuda|urldefense|symantec|"
    r"curl/|wget/|python-requests|python-httpx|go-http-client|java/|okhttp",
    re.IGNORECASE,
)


def is_bot(user_agent: str, since_sent: timedelta | None) -> bool:
    """Whether a hit is no person's. `since_sent`: time since the message was sent, None if that is not known yet."""
    if not user_agent.strip() or _NAMES.search(user_agent):
        return True
    return since_sent is not None and since_sent < TOO_SOON
