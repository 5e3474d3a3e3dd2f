"""Every metric has one place, a meaning and few labels; dashboard, alerts and docs speak of metrics that exist."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from shared.metrics import LABELS, catalogue

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
CASES = ROOT / "deploy/prometheus/alerts_test.yml"
DASHBOARD = ROOT / "deploy/grafana/dripline.json"
OPERATIONS = ROOT / "docs/OPERATIONS.md"
# What others tell: Prometheus itself, Kubernetes' kubelet, node_exporter.
FOREIGN = re.compile(r"^(up|ALERTS|kubelet_volume_stats_\w+|node_filesystem_\w+)$")
KINDS = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


def series_in(expression: str) -> set[str]:
    """The names of metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"|\{\{.*?\}\}', "", expression)
    without_labels = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]|\boffset\s+\w+", "", bare)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*(?!\w*\s*\()", without_labels) if "_" in name or name == "up"}


def test_names_of_metrics_are_found_in_expressions() -> None:
    found = series_in(
        'histogram_quantile(0.9, sum by (le, a_b) (rate(x_bucket{c_d="e_f"}[5m] offset 5m))) / y_total > 1'
    )
    assert found == {"x_bucket", "y_total"}


def test_a_metric_is_declared_in_one_place_only() -> None:
    elsewhere = []
    for folder in ("services", "shared", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == ROOT / "shared/metrics.py":
                continue
            tree = ast.parse(path.read_text())
            if not any(
                isinstance(node, ast.ImportFrom) and node.module == "prometheus_client" for node in ast.walk(tree)
            ):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                    elsewhere.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert elsewhere == []


def test_every_metric_has_our_prefix_a_meaning_and_known_labels() -> None:
    entries = catalogue()
    assert len(entries) > 30
    for entry in entries:
        assert entry.name.startswith("dripline_"), entry
        assert len(entry.meaning) > 15, entry
        assert set(entry.labels) <= set(LABELS), f"{entry.name}: say in LABELS what {entry.labels} may hold"
    assert {label for entry in entries for label in entry.labels} == set(LABELS)


def test_no_label_can_name_a_person() -> None:
    about_people = re.compile(r"address|email|phone|person|profile|node|user|name|ip$|message|run|order|token")
    assert [label for label in LABELS if about_people.search(label)] == []


def test_what_alerts_ask_for_exists() -> None:
    ours = {series for entry in catalogue() for series in entry.series}
    for rule in rules():
        asked = series_in(rule["expr"]) | series_in(" ".join(re.findall(r'query "([^"]+)"', str(rule["annotations"]))))
        assert asked, rule["alert"]
        assert {name for name in asked if name not in ours and not FOREIGN.match(name)} == set(), rule["alert"]


def test_every_alert_fires_in_one_case_and_does_not_in_another() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            (fires if expected["exp_alerts"] else silent).add(expected["alertname"])
    names = {rule["alert"] for rule in rules()}
    assert fires == names
    assert silent == names


def test_every_alert_has_its_page_in_the_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    names = [rule["alert"] for rule in rules()]
    assert headings == names, "one heading an alert, in their order"
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/OPERATIONS.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_what_the_dashboard_shows_exists() -> None:
    ours = {series for entry in catalogue() for series in entry.series}
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    for panel in panels:
        for target in panel["targets"]:
            asked = series_in(target["expr"])
            assert asked and {name for name in asked if name not in ours and not FOREIGN.match(name)} == set(), panel[
                "title"
            ]


def test_the_tables_in_the_docs_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
