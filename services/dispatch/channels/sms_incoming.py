"""What people write back by SMS, whichever way it comes: a word that means stop, or an answer. Pure: no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from datetime import UTC, datetime

from services.dispatch.channels.base import Report, Told

STOP_WORDS = frozenset({"stop", "стоп", "stopall", "unsubscribe", "отписка", "отмена"})
# Names of senders and short numbers of services write, too; nobody can be written to there.
_NUMBER = re.compile(r"\+?[\d\s()-]+")


def written_back(
    sender: str, text: str, at: datetime, *, id: str = "", stopped: bool = False, stop_words: Collection[str] = ()
) -> Report | None:
    """The report of a message that a person sent: *unsubscribed* or *replied*. The text itself is not kept. None if no
    phone number wrote it.

    :param at: when it came, business time
    :param id: the provider's for this message: heard once, however often it is told. Without one the same answer on the
        same day is one that the provider repeats; nobody who says stop is taken for a repeat: they may have subscribed
        anew in between, and the ledger knows whether it changes anything
    :param stopped: the provider itself takes it for a stop
    :param stop_words: which words mean stop besides `STOP_WORDS`, in lower case
    """
    number = re.sub(r"\D", "", sender) if _NUMBER.fullmatch(sender.strip()) else ""
    if not number:
        return None
    word = text.strip().strip(".!").casefold()
    what: Told = "unsubscribed" if stopped or word in STOP_WORDS or word in stop_words else "replied"
    name = f"incoming/{id}" if id else _made_id(number, word, what, at.astimezone(UTC))
    return Report(what, f"{name}/{what}", address=f"+{number}", detail="an SMS came back")


def _made_id(number: str, word: str, what: Told, at: datetime) -> str:
    when = at.isoformat() if what == "unsubscribed" else at.date().isoformat()
    return hashlib.sha256(f"{number}/{word}/{when}".encode()).hexdigest()[:32]
