"""The files that SECRETS_DIR names: what is missing is made, what is there is kept. Standard library only.

    python deploy/first_secrets.py FOLDER               at a first start: a password for PostgreSQL, and the URLs with it
    python deploy/first_secrets.py FOLDER set NAME      takes a value from standard input, for example smtp_url
    python deploy/first_secrets.py FOLDER unset NAME    takes it away, for example bus_url after a move to the log table

Each file holds the setting of its name (docs/OPERATIONS.md); none is ever printed.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

READ = ("bus_url", "database_url", "secret_key", "smtp_url")  # by the services, under these names
MODE = 0o444  # the folder is a volume that only the containers mount which need it, each with another user


def make_missing(folder: Path) -> list[str]:
    """Writes the files that are not there; returns their names."""
    password_file = folder / "postgres_password"
    password = password_file.read_text().strip() if password_file.exists() else secrets.token_urlsafe(32)
    wanted = {
        "postgres_password": password,
        "database_url": f"postgresql://dripline:{password}@postgres/dripline",
        "smtp_url": "smtp://mail:1025",
    }
    made = [name for name in wanted if not (folder / name).exists()]
    for name in made:
        write(folder / name, wanted[name])
    return made


def write(path: Path, value: str) -> None:
    """Replaces the file as a whole: a reader sees the former value or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value)
    temporary.chmod(MODE)
    temporary.replace(path)


def counts(name: str) -> str:
    """From when on; a name that nobody reads may be a slip."""
    if name in READ:
        return "it counts after: docker compose restart ingest profile triggers dispatch"
    return f"kept under a name that no service reads; they read {', '.join(READ)}"


def main(arguments: list[str]) -> int:
    """See above; 2 for a call that is not understood."""
    match arguments:
        case [folder]:
            made = make_missing(Path(folder))
            print(f"made {', '.join(made)}" if made else "all secrets are there")
        case [folder, "set", name] if name.isidentifier() and name == name.lower():
            value = sys.stdin.read().strip()
            if not value:
                print(f"{name} is as it was: nothing came on standard input", file=sys.stderr)
                return 2
            write(Path(folder) / name, value)
            print(f"{name} is set; {counts(name)}")
        case [folder, "unset", name] if name in READ:
            (Path(folder) / name).unlink(missing_ok=True)
            print(f"{name} is not set; {counts(name)}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
