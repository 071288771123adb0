"""serve/grafana.json: a dashboard for Grafana, of metrics that exist."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import ray

DASHBOARD: dict[str, Any] = json.loads(Path("serve/grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
# What Ray makes of a metric's name, by its kind.
EXPORTED = {"Counter": "ray_{}_total", "Gauge": "ray_{}", "Histogram": "ray_{}_bucket"}


def our_metrics() -> set[str]:
    """The metrics of serve/metrics.py, as they are exported."""
    source = Path("serve/metrics.py").read_text()
    defined = re.findall(r'(Counter|Gauge|Histogram)\(\s*"(\w+)"', source)
    return {EXPORTED[kind].format(name) for kind, name in defined}


def ray_metrics() -> set[str]:
    """The metrics that Ray's own dashboards show."""
    sources = Path(ray.__file__).parent.glob("dashboard/modules/metrics/dashboards/*_panels.py")
    return set(re.findall(r"\bray_\w+", "".join(source.read_text() for source in sources)))


def test_every_metric_in_a_query_is_exported() -> None:
    asked = set(re.findall(r"\bray_\w+", " ".join(QUERIES)))
    assert asked - ray_metrics() <= our_metrics()


def test_every_metric_of_ours_is_shown() -> None:
    assert our_metrics() <= set(re.findall(r"\bray_\w+", " ".join(QUERIES)))


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_balanced(query: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert query.count(opening) == query.count(closing)
    assert query.count("rate(") == query.count("[$__rate_interval]")


def test_panels_have_ids_and_titles_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down)


def test_the_data_source_is_a_variable() -> None:
    sources = re.findall(r'"uid": "([^"]*)"', Path("serve/grafana.json").read_text())
    assert set(sources) == {"$datasource", DASHBOARD["uid"]}
