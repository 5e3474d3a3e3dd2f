"""The command line: `dripline …`, or `python -m services …`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from services.importing.command import import_command
from services.migrate import migrate as migrate_database
from services.mistakes import mistakes_in_one_sentence, say
from shared import log
from shared.embedded_postgres import EmbeddedPostgres, running_url
from shared.errors import ConfigurationError
from shared.settings import Settings, load

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Event-driven trigger marketing."
)
rules_app = typer.Typer(no_args_is_help=True, help="Rules and templates as files.")
app.add_typer(rules_app, name="rules")
bus_app = typer.Typer(no_args_is_help=True, help="The bus: a log table, or Kafka.")
app.add_typer(bus_app, name="bus")
app.command("import")(import_command)

Port = Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the embedded database, the inbox and the credentials.")]
Url = Annotated[str | None, typer.Option(envvar="DRIPLINE_URL", help="The server; by default the one of --data.")]
ApiKey = Annotated[str | None, typer.Option(envvar="DRIPLINE_API_KEY", help="An API key; by default that of --data.")]


def _settings(**options: Any) -> Settings:
    settings = load(**options)
    log.configure(settings.log_format, settings.log_level)
    return settings


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The database's URL; an embedded server runs as long as the block."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres(settings.data_dir) as server:
        yield server.url


def existing_database(settings: Settings) -> str:
    """The database of a server that runs already (audit, keys …)."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    url = running_url(settings.data_dir)
    if url is None:
        raise ConfigurationError(
            f"No server is running on {settings.data_dir}; start it with `dripline up`, or set DATABASE_URL."
        )
    return url


def run_loop(main: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())  # type: ignore[arg-type]


@app.command()
def up(port: Port = None, host: Host = None, data: Data = None) -> None:
    """Start the services that SERVICES names (default: all four) and stay up until Ctrl-C."""
    from services.first_start import make_credentials
    from services.run import Server, run
    from services.welcome import welcome

    with mistakes_in_one_sentence():
        settings = _settings(port=port, host=host, data_dir=data)

        async def ready(server: Server) -> None:
            made = None
            if "ingest" in server.services:
                made = await make_credentials(server.context, server.origin)
            welcome(Console(stderr=True), server, made)
            await asyncio.Event().wait()

        with database(settings) as url:
            run_loop(lambda: run(settings, url, ready=ready))


@app.command()
def demo(
    port: Port = None,
    host: Host = None,
    data: Data = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days of the shop's life.")] = 21,
    exit: Annotated[bool, typer.Option("--exit", help="End after the report instead of staying up.")] = False,
    customers: Annotated[int, typer.Option(min=1, help="How many people the shop has.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed, the same shop.")] = 1,
) -> None:
    """Let a simulated shop live some weeks in about a minute, report what came of it, and stay up."""
    from services.demonstration import demonstrate

    with mistakes_in_one_sentence():
        settings = _settings(port=port, host=host, data_dir=data)
        with database(settings) as url:
            failed = demonstrate(settings, url, days=days, stay=not exit, customers=customers, seed=seed)
    if failed:
        raise typer.Exit(1)


@app.command()
def migrate(data: Data = None) -> None:
    """Bring the database to the newest version and end."""
    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        with database(settings) as url:
            later = asyncio.run(migrate_database(url))
    if later:
        say(Console(stderr=True), f"{', '.join(later)}: of a later version than this program, and left as it is.")
        return
    say(Console(stderr=True), "The database is at the newest version.")


@app.command()
def keys(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[str, typer.Option(help="read, marketing or admin.")] = "read",
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke the keys of that name instead.")] = False,
    data: Data = None,
) -> None:
    """Make a key for the management API; it is shown once."""
    from services.keys import make_key, revoke_keys

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        if revoke:
            count = asyncio.run(revoke_keys(existing_database(settings), name))
            say(Console(stderr=True), f"{count} API key{'s' if count > 1 else ''} called {name} revoked.")
            return
        print(asyncio.run(make_key(existing_database(settings), name, scope)))


@app.command()
def env(data: Data = None) -> None:
    """Print URL (PUBLIC_URL, if it is set) and keys of the first start as shell variables: eval "$(dripline env)"."""
    import shlex

    from services.first_start import read_credentials

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        try:
            known = read_credentials(settings.credentials_file)
        except FileNotFoundError:
            raise ConfigurationError(
                f"There is no {settings.credentials_file}; `dripline up` writes it at its first start."
            ) from None
    # For a shell outside of this machine's or container's own network as well: the way in that everybody takes.
    known["url"] = settings.public_url or known["url"]
    for name in ("url", "site_write_key", "server_write_key", "api_key"):
        print(f"export DRIPLINE_{name.upper()}={shlex.quote(str(known[name] or ''))}")


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="ingest, profiles, latency, dead_provider, idle, room; default: all.")
    ] = None,
) -> None:
    """Measure and print; asserts nothing about time. Needs a checkout."""
    try:
        from tests.bench.__main__ import main as run_benches
    except ModuleNotFoundError:
        say(
            Console(stderr=True),
            "[red]The benchmarks are part of the repository; run `make bench` in a checkout.[/red]",
        )
        raise typer.Exit(1) from None
    run_benches(list(names or []))


@app.command()
def audit(
    data: Data = None,
    derive: Annotated[bool, typer.Option("--derive", help="Also compute every decision again and compare.")] = False,
) -> None:
    """Print the books from counted rows; exit status 1 when they do not balance."""
    from services.audit import audit_and_print

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        balanced = asyncio.run(audit_and_print(settings, existing_database(settings), Console(), derive=derive))
    if not balanced:
        raise typer.Exit(1)


@app.command()
def doctor(data: Data = None, port: Port = None) -> None:
    """Say what is missing or wrong on this machine, and the mend."""
    from services.doctor import examine

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data, port=port)
        healthy = examine(settings, Console())
    if not healthy:
        raise typer.Exit(1)


Journal = Annotated[
    list[Path] | None, typer.Option(help="A file of the erasure journal that is younger than the backup; repeatable.")
]


@app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A new folder for it.")], data: Data = None) -> None:
    """Write a backup: the database, the erasure journal, the secrets. The services may run."""
    from services.backup import back_up

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        asyncio.run(back_up(settings, existing_database(settings), folder))
    say(Console(stderr=True), f"{folder} is complete. Keep it, and the erasure journal beside it, on another machine.")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `dripline backup` wrote.")],
    journal: Journal = None,
    data: Data = None,
) -> None:
    """Restore a backup into an empty database; dispatch comes back held."""
    from services.backup import restore as restore_backup

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        with database(settings) as url:
            note, restored = asyncio.run(restore_backup(settings, url, folder, journal or []))
    say(Console(stderr=True), f"Restored as of {note.at:%Y-%m-%d %H:%M:%S} UTC. {_what_was_restored(restored)}")


@app.command()
def restored(
    journal: Journal = None,
    nothing_lost: Annotated[
        bool, typer.Option("--nothing-lost", help="It was only moved: nothing happened after the copy was made.")
    ] = False,
    data: Data = None,
) -> None:
    """Tell a database that was restored by other means (a base backup, a snapshot) that it is a restored one."""
    from services.restoring import take_up_copy, was_only_moved

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        with database(settings) as url:
            if nothing_lost:
                asyncio.run(was_only_moved(url))
                say(Console(stderr=True), "The database is at home here now.")
                return
            report = asyncio.run(take_up_copy(settings, url, journal or []))
    say(Console(stderr=True), _what_was_restored(report))


def _what_was_restored(report: Any) -> str:
    return (
        f"The erasure journal erased {report.erased_nodes} identifiers again. Dispatch is held with {report.waiting} messages in "
        "the queue: start the services, look at /v1/messages?state=queued, then POST /v1/switches/release."
    )


@bus_app.command("move")
def bus_move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="URL of the bus in use; `database` is the log table.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="URL of the other one; `database` is the log table.")],
    limit: Annotated[float, typer.Option(help="Seconds that the old bus may take to become empty.")] = 600.0,
    lost: Annotated[bool, typer.Option("--lost", help="The old bus is gone; what it still held is given up.")] = False,
    data: Data = None,
) -> None:
    """Handle everything on one bus, then use another. The services are stopped meanwhile; BUS_URL is changed afterwards."""
    from services.bus_move import move

    with mistakes_in_one_sentence():
        settings = _settings(data_dir=data)
        with database(settings) as url:
            source, target = (url if bus == "database" else bus for bus in (source, target))
            moved = asyncio.run(move(settings, url, source, target, limit=limit, lost=lost))
    say(
        Console(stderr=True),
        f"{moved.handled} records were handled in {moved.seconds:.1f} s; the old bus is empty. Start the services with BUS_URL "
        "set to the new one.",
    )


@app.command()
def asyncapi() -> None:
    """Print docs/asyncapi.json, generated from the types of the bus's records."""
    from services.asyncapi import document

    print(document())


@rules_app.command("apply")
def rules_apply(
    directory: Annotated[
        Path, typer.Argument(help="A folder of rules (and templates/, offers.yml), or one rule's file.")
    ],
    activate: Annotated[bool, typer.Option("--activate", help="Activate the rules at once.")] = False,
    url: Url = None,
    key: ApiKey = None,
    data: Data = None,
) -> None:
    """Send rules, templates and offers to a server; rules that did not change stay as they are."""
    from services.rules_files import apply_directory

    with mistakes_in_one_sentence():
        apply_directory(directory, url, key, data or Path("data"), activate=activate, console=Console(stderr=True))


@rules_app.command("diff")
def rules_diff(
    directory: Annotated[Path, typer.Argument(help="A folder of rules.")],
    url: Url = None,
    key: ApiKey = None,
    data: Data = None,
) -> None:
    """Show what `apply` would change."""
    from services.rules_files import diff_directory

    with mistakes_in_one_sentence():
        diff_directory(directory, url, key, data or Path("data"), console=Console())


@rules_app.command("backtest")
def rules_backtest(
    directory: Annotated[Path, typer.Argument(help="A folder of rules, or one rule's file.")],
    since: Annotated[
        datetime | None, typer.Option(help="Begin of the period; by default 30 days before its end.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="End of the period; by default now.")] = None,
    url: Url = None,
    key: ApiKey = None,
    data: Data = None,
) -> None:
    """Show what rules would have done with what is stored; times without a zone are of this machine."""
    from services.rules_files import backtest_directory

    with mistakes_in_one_sentence():
        backtest_directory(
            directory,
            url,
            key,
            data or Path("data"),
            since=since.astimezone() if since else None,
            until=until.astimezone() if until else None,
            console=Console(),
        )


def main() -> None:
    app()


if __name__ == "__main__":
    main()
