"""What commands take from the environment that `dripline env` prints."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.__main__ import app
from services.rules_files import SHIPPED


@pytest.fixture
def nowhere() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("command", ["apply", "diff", "backtest"])
def test_commands_about_rules_speak_to_the_server_of_the_environment(
    command: str, nowhere: str, tmp_path: Path
) -> None:
    environment = {"DRIPLINE_URL": nowhere, "DRIPLINE_API_KEY": "key"}
    said = CliRunner().invoke(app, ["rules", command, str(SHIPPED), "--data", str(tmp_path)], env=environment)
    assert said.exit_code == 1
    assert nowhere in said.output


def test_the_help_of_bench_names_every_bench() -> None:
    from tests.bench.__main__ import BENCHES

    said = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"})
    assert [name for name in BENCHES if name not in said.output] == []
