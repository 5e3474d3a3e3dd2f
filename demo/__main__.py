"""`python -m demo`: lives the shop's life against a server, in the time that the parent process gives it."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from demo.api import Access, Api, ApiProblem
from demo.customers import Run
from demo.driver import Driver, DriverGone
from demo.life import live
from demo.shop import Shop


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Options, also from the environment (`DEMO_URL` …); keys only from there, so that no process list shows them."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)

    def option(name: str, default: str | None, text: str) -> None:
        variable = "DEMO_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default), help=f"{text} ({variable})")

    option("url", "http://127.0.0.1:8080", "the server")
    option("start", None, "first moment, ISO 8601 with zone")
    option("end", None, "last moment, ISO 8601 with zone; by default after --days")
    option("days", "21", "length of the run")
    option("timezone", os.environ.get("SHOP_TIMEZONE", "Europe/Moscow"), "where the customers get up and go to bed")
    option("slice-minutes", "15", "length of a slice of virtual time")
    option("seed", "1", "seed of all chance")
    option("customers", "250", "number of customers")
    option("shop-url", None, "address of the shop in links of products; by default the server's")
    return parser.parse_args(words)


def main() -> int:
    given = arguments()
    driver = Driver(sys.stdin, sys.stdout)
    try:
        run, access = _run(given), _access(given)
    except (LookupError, ValueError) as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    api = Api(access)
    try:
        driver.done(live(Shop(run), api, driver))
    except ApiProblem as problem:
        print(f"demo: {problem}", file=sys.stderr)
        driver.failed(str(problem))
        return 1
    except DriverGone as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        api.close()
    return 0


def _run(given: argparse.Namespace) -> Run:
    if not given.start:
        raise ValueError("--start is missing: the first moment of the run, ISO 8601 with zone")
    start = _moment("start", given.start)
    # One offset for the whole run: its arithmetic is on one line of time, whatever the clocks of a zone do.
    offset = start.astimezone(ZoneInfo(given.timezone)).utcoffset() or timedelta(0)
    start = start.astimezone(timezone(offset))
    end = _moment("end", given.end) if given.end else start + timedelta(days=int(given.days))
    if end <= start:
        raise ValueError("--end must be later than --start")
    length = timedelta(minutes=int(given.slice_minutes))
    if length <= timedelta(0) or timedelta(days=1) % length:
        raise ValueError("--slice-minutes must divide a day")
    shop_url = (given.shop_url or given.url).rstrip("/")
    return Run(start, end.astimezone(start.tzinfo), length, int(given.seed), int(given.customers), shop_url)


def _moment(name: str, text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"--{name} has no zone, as in 2026-11-02T00:00:00+03:00")
    return moment


def _access(given: argparse.Namespace) -> Access:
    keys = [os.environ.get(f"DEMO_{name}") for name in ("SITE_WRITE_KEY", "SERVER_WRITE_KEY", "API_KEY")]
    if not all(keys):
        raise ValueError("DEMO_SITE_WRITE_KEY, DEMO_SERVER_WRITE_KEY and DEMO_API_KEY must be set")
    return Access(given.url.rstrip("/"), *map(str, keys))


if __name__ == "__main__":
    sys.exit(main())
