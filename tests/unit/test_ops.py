"""What is shipped for Prometheus and Grafana names only what the monitor exposes, and is well-formed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.monitor.exposition import Exposition
from support.monitored import state_of_everything

OPS = Path(__file__).parents[2] / "ops"
COMPOSE = yaml.safe_load((OPS.parent / "compose.yaml").read_text())
RULES = yaml.safe_load((OPS / "prometheus/rules.yml").read_text())
BOARD = json.loads((OPS / "grafana/dashboards/aiaas.json").read_text())
OF_PROMETHEUS = {"up": {"job", "instance"}}
VARIABLES = {"$__rate_interval": "1m", "$model": "m"}


def text() -> str:
    registry = CollectorRegistry()
    registry.register(Exposition(state_of_everything()))
    return generate_latest(registry).decode()


def exposed() -> dict[str, set[str]]:
    """Every series name with the labels it can have."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text()):
        assert family.samples, f"{family.name} has no sample: tests/support/monitored.py should have one"
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


EXPOSED = exposed()
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in ALL_RULES if "record" in rule}
EXPRESSIONS = [
    *(
        pytest.param(rule["expr"], id=f"rule-{rule.get('alert', rule.get('record'))}")
        for g in RULES["groups"]
        for rule in g["rules"]
    ),
    *(
        pytest.param(target["expr"], id=f"panel-{panel['title']}-{target['refId']}")
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    ),
]


def parsed(expression: str) -> promql_parser.Expr:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return promql_parser.parse(expression)


def nodes(expression: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expression, found.append)
    return found


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    return [node for node in nodes(parsed(expression)) if isinstance(node, promql_parser.VectorSelector)]


def labels_of(metric: str) -> set[str]:
    """The labels of a series, one that a rule records included."""
    if metric in RECORDED:
        [outer] = re.findall(r"sum by \(([^)]*)\)", RECORDED[metric])[:1]
        return {label.strip() for label in outer.split(",")} - {"le"}
    return EXPOSED[metric] | {"job"} if metric in EXPOSED else OF_PROMETHEUS[metric]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_is_exposed(expression):
    asked = selectors(expression)
    for selector in asked:
        assert selector.name in EXPOSED.keys() | RECORDED.keys() | OF_PROMETHEUS.keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of(selector.name), (selector.name, matcher.name)
    known = set().union(*(labels_of(selector.name) for selector in asked))
    for node in nodes(parsed(expression)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known, expression


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "alert" in rule])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    about = set().union(
        *(
            labels_of(node.name)
            for node in nodes(parsed(rule["expr"]))
            if isinstance(node, promql_parser.VectorSelector)
        )
    )
    for label in re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())):
        assert label in about, (rule["alert"], label)


def test_the_board_is_whole():
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]
            assert panel["targets"]


def test_compose_has_both_behind_a_profile():
    services = COMPOSE["services"]
    assert services["prometheus"]["profiles"] == services["grafana"]["profiles"] == ["observability"]
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (OPS.parent / source).exists(), source
    [scrape] = yaml.safe_load((OPS / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["monitor:8090"]}]
    assert scrape["honor_labels"] is True
    [source] = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def in_container(service: str, path: str) -> Path:
    """The file of ours that a container has at a path."""
    for volume in COMPOSE["services"][service]["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("./") and Path(path).is_relative_to(target):
            return OPS.parent / source / Path(path).relative_to(target)
    raise AssertionError(f"{service} has no file of ours at {path}")


def test_containers_find_their_configuration_where_they_look():
    # Where the images look unless they are told otherwise: /etc/prometheus/prometheus.yml, /etc/grafana/provisioning.
    config = yaml.safe_load(in_container("prometheus", "/etc/prometheus/prometheus.yml").read_text())
    for rules in config["rule_files"]:
        assert in_container("prometheus", f"/etc/prometheus/{rules}").is_file()
    for what in ("datasources", "dashboards"):
        files = list(in_container("grafana", f"/etc/grafana/provisioning/{what}").glob("*.yml"))
        assert files
        for file in files:
            document = yaml.safe_load(file.read_text())
            assert document.keys() == {"apiVersion", "providers" if what == "dashboards" else what}
            for provider in document.get("providers", ()):
                boards = in_container("grafana", provider["options"]["path"])
                assert [json.loads(board.read_text())["uid"] for board in boards.glob("*.json")] == ["aiaas"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert in_container("grafana", home).is_file()


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]],
)
def test_promtool_agrees(command):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: docs/observability.md says how to build it")
    done = subprocess.run([promtool, *command], cwd=OPS / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------ the exposition itself


def test_counters_end_as_the_convention_has_it_and_units_are_base_units():
    for family in text_string_to_metric_families(text()):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        if family.name.startswith("nv_"):
            assert family.type in {"unknown", "untyped"}
            continue
        assert family.name.startswith("aiaas_")
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
        else:
            assert not family.name.endswith("_total")
        assert not re.search(r"_(ms|us|ns|percent|kb|mb)(_|$)", family.name), family.name


def test_histograms_aggregate():
    """All series of a histogram have the same bounds, cumulative, and agree with their count."""
    for family in text_string_to_metric_families(text()):
        if family.type != "histogram":
            continue
        of = defaultdict(list)
        counts = {}
        for sample in family.samples:
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
            if sample.name.endswith("_bucket"):
                of[labels].append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
        assert len({tuple(bound for bound, _ in buckets) for buckets in of.values()}) == 1
        for labels, buckets in of.items():
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1] == (float("inf"), counts[labels])


def test_drift_is_told_by_tensor():
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text())
        for sample in family.samples
    }
    of = (("model", "m"), ("tensor", "input/x"), ("version", "2"))
    assert samples["aiaas_drift_distance_ratio", *of] == 0.4
    assert samples["aiaas_drift_windows_total", of[0], of[2]] == 2


def test_triton_names_tell_the_same_numbers():
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text())
        for sample in family.samples
    }
    of = (("model", "m"), ("version", "2"))
    assert samples["nv_inference_request_success", *of] == 4
    assert samples["nv_inference_request_failure", of[0], ("reason", "OTHER"), of[1]] == 1
    assert samples["nv_inference_count", *of] == 4
    assert samples["nv_inference_exec_count", *of] == 2
    assert samples["nv_inference_queue_duration_us", *of] == 12_000
    assert samples["nv_inference_compute_infer_duration_us", *of] == 4_000
    assert samples["nv_inference_pending_request_count", of[0], ("version", "")] == 8
    assert samples["nv_gpu_utilization", ("gpu", "0"), ("instance", "w")] == 0.4
    assert samples["aiaas_requests_total", of[0], ("status", "succeeded"), of[1]] == 4
