"""Telegram's Bot API for tests, as its documentation describes it (Bot API 8, `sendMessage`): the token in the path, the
request's fields and their types, the text's markup and its 4096 characters are checked; chats that there are not,
and people who blocked the bot, are answered as Telegram answers."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.support.http_peer import Answer, Desk, HttpPeer, Request, serve

TOKEN = "123456:AAbbCCddEEffGGhhIIjjKKllMMnnOOpp"
BLOCKED, NOBODY, DEACTIVATED = 403001, 400001, 403002
_REFUSALS = {
    BLOCKED: (403, "Forbidden: bot was blocked by the user"),
    DEACTIVATED: (403, "Forbidden: user is deactivated"),
    NOBODY: (400, "Bad Request: chat not found"),
}
_FIELDS = {"chat_id", "text", "parse_mode", "link_preview_options"}
_TAGS = {"b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "a", "code", "pre", "blockquote", "tg-spoiler"}


class TelegramPeer(HttpPeer):
    """`taken` in the ledger: chat, text as sent, and `plain`: as a person reads it."""

    module = "tests.support.telegram_peer"

    def __init__(self) -> None:
        super().__init__(token=TOKEN)


class _Markup(HTMLParser):
    """Telegram's rules: few tags, well nested, named entities lt gt amp quot only."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.plain, self.problem, self._open = "", "", []

    def handle_starttag(self, tag: str, _: Any) -> None:
        self._open.append(tag)
        if tag not in _TAGS:
            self.problem = f'Unsupported start tag "{tag}"'

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problem = f'Unexpected end tag "{tag}"'

    def handle_data(self, data: str) -> None:
        self.plain += data

    def handle_charref(self, name: str) -> None:
        self.plain += chr(int(name[1:], 16) if name.startswith("x") else int(name))

    def handle_entityref(self, name: str) -> None:
        known = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
        self.plain += known.get(name, f"&{name}")

    def read(self, text: str) -> str:
        self.feed(text)
        self.close()
        return self.problem or (f'Can\'t find end tag "{self._open[-1]}"' if self._open else "")


class _Telegram(Desk):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._messages = 100

    def judge(self, request: Request) -> Answer | None:
        if request.path != f"/bot{self.told['token']}/sendMessage":
            return _error(401 if request.path.startswith("/bot") else 404, "Unauthorized")
        if request.headers.get("content-type") != "application/json":
            return _error(400, "Bad Request: message text is empty")
        fields = json.loads(request.body)
        if not isinstance(fields.get("chat_id"), int) or not set(fields) <= _FIELDS:
            return _error(400, "Bad Request: chat_id is empty")
        if refusal := _REFUSALS.get(fields["chat_id"]):
            return _error(*refusal)
        markup = _Markup()
        if fields.get("parse_mode") == "HTML" and (problem := markup.read(fields["text"])):
            return _error(400, f"Bad Request: can't parse entities: {problem}")
        plain = markup.plain if fields.get("parse_mode") else fields["text"]
        if not plain.strip():
            return _error(400, "Bad Request: message text is empty")
        if len(plain.encode("utf-16-le")) // 2 > 4096:
            return _error(400, "Bad Request: message is too long")
        self._plain = plain
        return None

    def take(self, request: Request) -> Answer:
        fields = json.loads(request.body)
        self._messages += 1
        self.write("taken", message=self._messages, plain=self._plain, **fields)
        chat = {"id": fields["chat_id"], "type": "private", "first_name": "Anna"}
        result = {"message_id": self._messages, "date": 1_770_000_000, "chat": chat, "text": self._plain}
        return Answer(200, {"ok": True, "result": result})


def _error(code: int, description: str) -> Answer:
    return Answer(code, {"ok": False, "error_code": code, "description": description})


if __name__ == "__main__":
    serve(_Telegram)
