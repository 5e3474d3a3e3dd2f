"""A Maildir that somebody else fills (a mail server on this machine, a program that fetches a mailbox) and we read: what is
in `new` waits, what was read lies in `cur`, marked as seen. Nothing is deleted."""

from __future__ import annotations

from pathlib import Path

LARGEST = 1 << 20


def waiting(folder: Path, most: int) -> list[Path]:
    """The oldest mails that were not read yet.

    :raises OSError: there is no such Maildir, or it may not be read
    """
    return sorted(path for path in (folder / "new").iterdir() if not path.name.startswith(".") and path.is_file())[
        :most
    ]


def content(mail: Path) -> bytes | None:
    """The mail, cut where nobody looks any more; None if somebody else has read it meanwhile."""
    try:
        with mail.open("rb") as file:
            return file.read(LARGEST)
    except FileNotFoundError:
        return None


def put_away(mail: Path) -> None:
    """Moves it to `cur`, unless somebody else has done so."""
    seen = mail.parent.parent / "cur"
    seen.mkdir(exist_ok=True)
    try:
        mail.rename(seen / f"{mail.name.partition(':')[0]}:2,S")
    except FileNotFoundError:
        pass  # another process reads the same folder; what it told is told once
