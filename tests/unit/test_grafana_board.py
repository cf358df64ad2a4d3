"""The board for Grafana: a whole one, readable, of panels that do not lie on one another."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "aios.json"
Panel = dict[str, Any]


def panels() -> list[Panel]:
    found: list[Panel] = json.loads(BOARD.read_text())["panels"]
    return found


def test_panels_have_their_own_ids_and_places() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for one, other in combinations(panels(), 2):
        a, b = one["gridPos"], other["gridPos"]
        assert (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        ), (one["title"], other["title"])
        assert a["x"] + a["w"] <= 24


def test_every_panel_asks_the_chosen_prometheus_for_the_chosen_job() -> None:
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert '{job=~"$job"}' in target["expr"], panel["title"]
