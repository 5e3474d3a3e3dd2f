"""Settings come from the environment, mistakes are said in one sentence, and secrets stay secret."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.settings import SERVICE_NAMES, Settings, load


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in Settings.model_fields or name == "SECRETS_DIR":
            monkeypatch.delenv(name)


def test_by_default_everything_runs_in_one_process_on_this_machine_only() -> None:
    settings = load()
    assert settings.services == set(SERVICE_NAMES)
    assert settings.uses_embedded_database
    assert settings.origin == "http://127.0.0.1:8080"
    assert settings.smtp_url is None
    assert settings.lease == timedelta(seconds=3)
    assert settings.mark_interval == timedelta(milliseconds=200)


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    assert load(port=None).port == 9000
    assert load(port=9001).port == 9001


@pytest.mark.parametrize(
    ("environment", "partitions"),
    [
        ({}, 8),
        ({"DATABASE_URL": "postgresql://db/x"}, 64),
        ({"BUS_URL": "kafka://broker:9092"}, 64),
        ({"PARTITIONS": "12"}, 12),
        ({"BUS_URL": "kafka://broker:9092", "PARTITIONS": "12"}, 12),
    ],
)
def test_the_embedded_default_has_fewer_partitions(
    environment: dict[str, str], partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load().partitions == partitions


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICES", "ingest, profile")
    monkeypatch.setenv("SHOP_HOSTS", "shop.example,www.shop.example")
    settings = load()
    assert settings.services == {"ingest", "profile"}
    assert settings.link_hosts == {"shop.example", "www.shop.example"}


def test_an_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    assert load().uses_embedded_database


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICES", "ingst"),
        ("SERVICES", " , "),
        ("PORT", "99999"),
        ("SHOP_TIMEZONE", "Mars/Olympus"),
        ("SHOP_CURRENCY", "rub"),
        ("DATABASE_URL", "mysql://db/x"),
        ("BUS_URL", "redis://cache:6379"),
        ("SMTP_URL", "mail.example.com"),
        ("PUBLIC_URL", "example.com"),
        ("QUIET_HOURS", "9pm"),
        ("PARTITIONS", "0"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:port/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:65536/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@[::1/x"),
        ("DATABASE_URL", "postgresql://u:hunter2/x@db/x"),
        ("BUS_URL", "kafka://one:9092,two:port"),
        ("BUS_URL", "postgresql://u:hunter2@db:port/x"),
        ("SMTP_URL", "smtp://u:hunter2@mail:port"),
        ("PUBLIC_URL", "https://shop.example:port"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^Wrong setting. {name}: ") as caught:
        load()
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql:///dripline?host=/run/postgresql"),
        ("DATABASE_URL", "postgresql://u:p%2Fw%40@[::1]:5432,standby/dripline"),
        ("BUS_URL", "kafkas://u:p@one:9092,[2001:db8::1]:9092/shop?mechanism=PLAIN"),
        ("SMTP_URL", "smtps://mail.example"),
    ],
)
def test_every_way_to_name_a_server_is_taken(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(load(), name.lower()).get_secret_value() == value


def test_passwords_are_neither_printed_nor_told_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@db/x")
    assert "hunter2" not in repr(load())
    monkeypatch.setenv("DATABASE_URL", "mysql://u:hunter2@db/x")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "hunter2" not in str(caught.value)


def test_secrets_may_stand_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret_key").write_text("from-a-file\n")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    secret = load().secret_key
    assert secret is not None
    assert secret.get_secret_value() == "from-a-file"
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="not a folder"):
        load()


@pytest.mark.parametrize("name", ["bus_url", "smtp_url", "secret_key"])
def test_an_empty_file_of_a_secret_is_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text("\n")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    assert getattr(load(), name) is None


def test_an_empty_file_does_not_make_the_database_an_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "database_url").write_text("")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="DATABASE_URL: must begin with postgresql"):
        load()


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
