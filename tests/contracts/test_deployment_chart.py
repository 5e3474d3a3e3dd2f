"""What the chart keeps beyond a pod's life, where commands run while the services are stopped, and which ways are open."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from services.__main__ import app
from shared.settings import SERVICE_NAMES
from tests.contracts.test_deployment import CHART, ROOT, VALUES, manifests, template

OPERATIONS = (ROOT / "docs/OPERATIONS.md").read_text()
WITHOUT_FILES = ("--set", "data.enabled=false")


def made(*options: str | Path, values: str = "small", chart: Path = CHART) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes, by kind and name."""
    documents = manifests(template("-f", VALUES[values], *options, chart=chart))
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def pod(documents: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents["Deployment", f"drip-{name}"]["spec"]["template"]["spec"]
    return spec


def told(spec: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in spec["containers"][0]["env"]}


def claim(spec: dict[str, Any]) -> str | None:
    [data] = [volume for volume in spec["volumes"] if volume["name"] == "data"]
    name: str | None = data.get("persistentVolumeClaim", {}).get("claimName")
    return name


# ── the journal of erasures ───────────────────────────────────────────────────────────────────────────────────────────
def test_by_default_the_journal_of_erasures_outlives_the_pods_and_the_release() -> None:
    documents = made()
    kept = documents["PersistentVolumeClaim", "drip-data"]
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert kept["spec"]["accessModes"] == ["ReadWriteMany"], "every profile pod writes it, on whatever node"
    assert kept["spec"]["storageClassName"] == "shared"
    for name in ("profile", "console"):
        assert claim(pod(documents, name)) == "drip-data"
        assert "ERASURE_JOURNAL" not in told(pod(documents, name)), "its default is a file in DATA_DIR"


def test_a_claim_of_the_operators_own_is_taken_and_none_is_made() -> None:
    documents = made(values="everything")
    assert not [name for kind, name in documents if kind == "PersistentVolumeClaim"]
    assert {claim(pod(documents, name)) for name in ("ingest", "profile", "dispatch", "console")} == {"shared-files"}


def test_without_files_the_journal_is_off() -> None:
    documents = made(*WITHOUT_FILES)
    assert not [name for kind, name in documents if kind == "PersistentVolumeClaim"]
    for name in (*SERVICE_NAMES, "console"):
        assert claim(pod(documents, name)) is None
        assert told(pod(documents, name))["ERASURE_JOURNAL"] == "off"


def test_the_notes_say_where_the_journal_is_and_which_ways_are_open(tmp_path: Path) -> None:
    # Helm shows them at an installation only, to which a cluster belongs: here they are a text in a document.
    chart = shutil.copytree(CHART, tmp_path / "chart")
    notes = (chart / "templates/NOTES.txt").read_text()
    (chart / "templates/_notes.tpl").write_text('{{ define "notes" }}' + notes + "{{ end }}")
    (chart / "templates/notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: ""}\nsaid: |{{ include "notes" . | nindent 2 }}'
    )

    def said(*options: str) -> str:
        return " ".join(made(*options, chart=chart)["Notes", ""]["said"].split())

    assert "get pvc drip-data" in said() and "2775" in said()
    assert "exec deploy/drip-ingest" in said() and "scale deploy/drip-console --replicas=1" in said()
    without = said(*WITHOUT_FILES, "--set-json", "networkPolicy.egressPorts=[]")
    assert "whoever is erased after the last backup comes back" in without
    assert "pvc" not in without and "egressPorts" not in without
    assert "pvc" not in said("--set", "data.existingClaim=mine") and "comes back" not in said(
        "--set", "data.existingClaim=mine"
    )


# ── the console ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("values", VALUES)
def test_the_console_waits_to_be_called_and_is_told_what_the_services_are(values: str) -> None:
    documents = made(values=values)
    console, profile = pod(documents, "console"), pod(documents, "profile")
    assert documents["Deployment", "drip-console"]["spec"]["replicas"] == 0
    own = {"SERVICES", "PORT", "DRAIN_SECONDS"}
    assert told(console) == {name: value for name, value in told(profile).items() if name not in own}
    assert console["containers"][0]["volumeMounts"] == profile["containers"][0]["volumeMounts"]
    assert claim(console) == claim(profile)
    selector = documents["Deployment", "drip-console"]["spec"]["selector"]["matchLabels"]
    for (kind, _), document in documents.items():
        if kind == "Service":
            assert document["spec"]["selector"] != selector, "no request comes to it"


def test_the_console_ends_when_it_is_told_to() -> None:
    [*shell, script] = pod(made(), "console")["containers"][0]["command"]
    # As the first process of a container: a signal without a handler does not reach that one.
    waiting = subprocess.Popen(
        [*shell, script.replace("sleep infinity", "echo waits; sleep 60")], stdout=subprocess.PIPE
    )
    assert waiting.stdout is not None and waiting.stdout.readline() == b"waits\n"
    waiting.terminate()
    assert waiting.wait(timeout=5) == 0


# ── what must not go wrong in silence ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("values", VALUES)
def test_no_pod_starts_when_the_secret_lacks_the_database(values: str) -> None:
    """It would start a database of its own and look well. A key that is named, and not optional, keeps the pod waiting."""
    started = [
        one["spec"]["template"]["spec"] for one in made(values=values).values() if one["kind"] in ("Deployment", "Job")
    ]
    assert len(started) == len(SERVICE_NAMES) + 2
    for spec in started:
        [secrets] = [volume["projected"] for volume in spec["volumes"] if volume["name"] == "secrets"]
        named = [source["secret"] for source in secrets["sources"] if "items" in source["secret"]]
        assert [one["items"] for one in named] == [[{"key": "database_url", "path": "database_url"}]]
        assert not any(one.get("optional") for one in named)


def test_the_pods_of_an_upgrade_are_spread_by_themselves() -> None:
    """Counted together with the old ones, the new ones of a service end on one node when the old ones are gone."""
    documents = made()
    for name in SERVICE_NAMES:
        [spread] = pod(documents, name)["topologySpreadConstraints"]
        assert spread["matchLabelKeys"] == ["pod-template-hash"], name
        assert spread["topologyKey"] == "kubernetes.io/hostname"


def test_a_failed_migration_is_found_by_its_name_until_the_next_one() -> None:
    """The hook deletes the job of the last try by its name: with one for each revision the failed ones would stay."""
    job = made()["Job", "drip-migrate"]
    policy = job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert policy == "before-hook-creation,hook-succeeded"
    assert ".Release.Revision" not in (CHART / "templates/migration.yaml").read_text()


# ── the commands of the documentation ─────────────────────────────────────────────────────────────────────────────────
def commands(program: str) -> list[list[str]]:
    """The words of each command in OPERATIONS that begins with it."""
    blocks = re.findall(r"```sh\n(.*?)```", OPERATIONS, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in (*lines, *re.findall(rf"`({program} [^`]+)`", OPERATIONS)):
        if program in line:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            parts = itertools.groupby(lexer, key=lambda word: set(word) <= set("|&;()<>"))
            found += [words for between, group in parts if not between and (words := list(group))[0] == program]
    return found


def test_every_kubectl_of_the_documentation_names_the_namespace_and_something_that_the_chart_makes() -> None:
    documents = made()
    assert len(commands("kubectl")) >= 12
    for words in commands("kubectl"):
        if "storageclass" in words:
            continue
        assert words[1:3] == ["-n", "shop"], words
        for word in words:
            if named := re.fullmatch(r"deploy/(drip-\w+)", word):
                assert ("Deployment", named[1]) in documents, word


def test_helm_waits_for_the_pods_and_longer_than_the_migration_may_take() -> None:
    """Without it the next command finds no container, and a long migration is given up while it runs."""
    longest = made()["Job", "drip-migrate"]["spec"]["activeDeadlineSeconds"]
    installing = [words for words in commands("helm") if words[1:3] == ["upgrade", "--install"]]
    assert installing
    for words in installing:
        assert "--wait" in words, words
        assert int(words[words.index("--timeout") + 1].removesuffix("m")) * 60 > longest, words


def test_what_the_documentation_stops_and_starts_are_the_services_alone() -> None:
    chosen = set(re.findall(r"^services='app.kubernetes.io/instance=drip,(.*)'$", OPERATIONS, re.MULTILINE))
    assert chosen == {"app.kubernetes.io/component in (" + ",".join(SERVICE_NAMES) + ")"}
    labels = {name: one["metadata"]["labels"] for (kind, name), one in made().items() if kind == "Deployment"}
    assert {one["app.kubernetes.io/instance"] for one in labels.values()} == {"drip"}
    assert {name: one["app.kubernetes.io/component"] for name, one in labels.items()} == {
        f"drip-{name}": name for name in (*SERVICE_NAMES, "console")
    }


def test_every_dripline_command_of_the_documentation_exists() -> None:
    known = typer.main.get_command(app)
    calls = [list(itertools.dropwhile(lambda word: word != "--", words))[1:] for words in commands("kubectl")]
    calls += [words[4:] for words in commands("docker") if words[2] == "exec" and words[4] == "dripline"]
    calls += [
        ["dripline", *words[words.index("profile") + 1 :]]
        for words in commands("docker")
        if "--no-deps" in words and "--entrypoint" not in words
    ]
    found = [words[words.index("dripline") + 1 :] for words in calls if "dripline" in words]
    assert len(found) >= 10
    for words in found:
        command: Any = known
        while hasattr(command, "commands"):  # a group
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


# ── what the services may reach ───────────────────────────────────────────────────────────────────────────────────────
def open_ports(*options: str) -> Any:
    rule = made(*options)["NetworkPolicy", "drip"]["spec"]["egress"][1]
    return [port["port"] for port in rule["ports"]] if rule else "every port"


def test_the_examples_of_the_channels_reach_their_providers() -> None:
    channels = (ROOT / "docs/CHANNELS.md").read_text()
    named = {int(port) for port in re.findall(r'"port": (\d+)', channels)}
    named |= {int(port) for port in re.findall(r"smtps?(?:\+starttls)?://[^\s`\"]*:(\d+)", channels + OPERATIONS)}
    assert 4441 in named and 587 in named
    assert named - {1025} <= set(open_ports())


def test_names_are_resolved_wherever_the_cluster_does_it() -> None:
    """A cache on the node (NodeLocal DNSCache) is no pod that a selector finds."""
    names = made()["NetworkPolicy", "drip"]["spec"]["egress"][0]
    assert names == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def test_an_empty_list_of_ports_opens_every_port() -> None:
    assert open_ports("--set-json", "networkPolicy.egressPorts=[]") == "every port"
