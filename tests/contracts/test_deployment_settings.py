"""What an operator writes into `.env` reaches the services, and what they must not be told by it does not."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.generate_docs import BESIDE
from services.doctor import CATCHER, SHOP
from shared.settings import SERVICE_NAMES, Settings, load
from tests.contracts.test_deployment import ROOT, tool

# What a container is by its place in the file, and what lies among the secrets.
OF_THE_CONTAINER = {"SERVICES", "SECRETS_DIR", "DATA_DIR", "HOST", "PORT", "SET_IN_VAIN"}
SECRET = {"DATABASE_URL", "SMTP_URL", "SECRET_KEY"}
DOCUMENTED = {name.upper() for name in Settings.model_fields} | set(BESIDE)
BY_DEFAULT_DIFFERENT = {"BUS_URL", "PUBLIC_URL", "FORWARDED_ALLOW_IPS", "LOG_FORMAT"}
EXAMPLE = (ROOT / ".env.example").read_text()


def read_by_compose(folder: Path, dot_env: str = "", *files: str) -> dict[str, Any]:
    """The services as compose understands them in a checkout with this `.env`."""
    files = ("docker-compose.yml", *files)
    (folder / "deploy").mkdir(exist_ok=True)
    for file in files:
        shutil.copy(ROOT / file, folder / file)
    (folder / ".env").write_text(dot_env)
    # compose-go's own command knows no .env (nor the shell) but for what is included.
    (folder / "compose.yaml").write_text(yaml.safe_dump({"include": [{"path": list(files), "project_directory": "."}]}))
    done = subprocess.run([tool("compose-go"), "compose.yaml"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    for service in services.values():
        if isinstance(told := service.get("environment"), list):
            service["environment"] = dict(line.split("=", 1) for line in told)
    return services


def settings_of(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, secrets: Path | None = None
) -> Settings:
    """What a process with exactly this environment goes by."""
    with monkeypatch.context() as patched:
        for name in DOCUMENTED:
            patched.delenv(name, raising=False)
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setenv("SECRETS_DIR", str(secrets or ""))
        return load()


def test_every_documented_setting_reaches_the_services_from_the_environment_file(tmp_path: Path) -> None:
    told = {name: f"of-{name.lower()}" for name in DOCUMENTED}
    services = read_by_compose(tmp_path, "\n".join(f"{name}={value}" for name, value in told.items()))
    for name in (*SERVICE_NAMES, "migrate"):
        environment = services[name]["environment"]
        for setting in DOCUMENTED - OF_THE_CONTAINER - SECRET:
            assert environment[setting] == told[setting], f"{name} is not told {setting}"


def test_what_a_container_is_and_the_secrets_do_not_come_from_the_environment_file(tmp_path: Path) -> None:
    others = (*OF_THE_CONTAINER, *SECRET, "POSTGRES_PASSWORD", "COMPOSE_PARALLEL_LIMIT")
    plain = read_by_compose(tmp_path)
    told = read_by_compose(tmp_path, "\n".join(f"{name}=1" for name in others))
    for name in (*SERVICE_NAMES, "migrate"):
        named = told[name]["environment"].pop("SET_IN_VAIN")
        assert plain[name]["environment"].pop("SET_IN_VAIN") == ""
        assert told[name]["environment"] == plain[name]["environment"]
        assert set(named.strip(",").split(",")) == SECRET


def test_a_secret_in_the_environment_file_is_named_to_whoever_asks_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = read_by_compose(tmp_path, "SMTP_URL=smtp://u:canary@mail.example.com:587\nSECRET_KEY=")
    assert "canary" not in str(services)
    environment = {name: value for name, value in services["dispatch"]["environment"].items() if name != "SECRETS_DIR"}
    settings = settings_of(environment, monkeypatch)
    assert settings.set_in_vain == ("SMTP_URL",) and settings.smtp_url is None
    [check] = [check for name, check in SHOP if name == "every setting counts"]
    assert "SMTP_URL" in str(check(settings)) and "secrets set smtp_url" in str(check(settings))
    assert check(settings_of({}, monkeypatch)) is None


def test_the_mail_catcher_of_the_first_start_is_no_mail_server(tmp_path: Path) -> None:
    first = runpy.run_path(str(ROOT / "deploy/first_secrets.py"))["make_missing"]
    first(tmp_path)
    assert (tmp_path / "smtp_url").read_text() == CATCHER
    [check] = [check for name, check in SHOP if name == "sending mail"]
    assert "catcher" in str(check(load(smtp_url=CATCHER, smtp_from="shop@shop.example")))


def test_the_example_as_it_is_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_by_compose(tmp_path)
    assert read_by_compose(tmp_path, EXAMPLE) == plain
    given = {name: value for name, value in plain["profile"]["environment"].items() if name not in BY_DEFAULT_DIFFERENT}
    for name in ("SERVICES", "SECRETS_DIR"):
        del given[name]
    database = {"DATABASE_URL": "postgresql://postgres/dripline"}  # the embedded one has other defaults
    assert settings_of(given | database, monkeypatch) == settings_of(database, monkeypatch)


def test_the_example_names_every_variable_with_its_default() -> None:
    used = re.findall(r"\$\{(\w+):?-([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    example = dict(re.findall(r"^#?(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert dict(used) == example
    assert len(set(used)) == len(example), "one variable, one default"


def test_a_setting_that_is_empty_in_the_environment_file_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = [f"{name}=" for name in DOCUMENTED - OF_THE_CONTAINER - SECRET]
    environment = read_by_compose(tmp_path, "\n".join(emptied))["dispatch"]["environment"]
    environment.pop("SERVICES"), environment.pop("SECRETS_DIR")
    told = settings_of(environment, monkeypatch)
    assert told.bus_url is None, "the log table"
    assert told.public_url == "https://localhost:8443"
    assert told.dead_letter_days == Settings.model_fields["dead_letter_days"].default


# ── the bus ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def bus_of(services: dict[str, Any]) -> set[str]:
    return {services[name]["environment"]["BUS_URL"] for name in SERVICE_NAMES}


def test_the_bus_is_the_kafka_beside_it_or_what_the_environment_file_says(tmp_path: Path) -> None:
    plain = read_by_compose(tmp_path)
    assert bus_of(plain) == {"kafka://kafka:9092"} and plain["kafka"]["scale"] == 1
    other = read_by_compose(tmp_path, "BUS_URL=kafkas://broker.example.com:9093\nOWN_KAFKA=0")
    assert bus_of(other) == {"kafkas://broker.example.com:9093"} and other["kafka"]["scale"] == 0
    three = "deploy/kafka-three.yml"
    assert bus_of(read_by_compose(tmp_path, "", three)) == {"kafka://kafka:9092,kafka-2:9092,kafka-3:9092"}
    assert bus_of(read_by_compose(tmp_path, EXAMPLE, three)) == {"kafka://kafka:9092,kafka-2:9092,kafka-3:9092"}
    assert bus_of(read_by_compose(tmp_path, "BUS_URL=", three)) == {""}


def test_without_a_kafka_nobody_waits_for_one(tmp_path: Path) -> None:
    services = read_by_compose(tmp_path, "BUS_URL=\nOWN_KAFKA=0")
    assert bus_of(services) == {""} and services["kafka"]["scale"] == 0
    for name in SERVICE_NAMES:
        # Compose warns of a dependency that has no container, and starts without it.
        assert services[name]["depends_on"]["kafka"] == {"condition": "service_healthy", "required": False}


def test_a_bus_with_a_password_comes_from_the_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = read_by_compose(tmp_path, "BUS_URL=\nOWN_KAFKA=0")["ingest"]["environment"]
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "bus_url").write_text("kafkas://u:p@broker.example.com:9093")
    del environment["SECRETS_DIR"]
    bus = settings_of(environment, monkeypatch, secrets).bus_url
    assert bus is not None and bus.get_secret_value() == "kafkas://u:p@broker.example.com:9093"
