from common.measurement import Measurement
from projects.home.recap.metrics import metrics_table


def test_a_row_per_task_and_a_dash_for_what_is_not_available() -> None:
    metrics = {
        "recap.engagement.is_favorited/loss": 0.25,
        "recap.engagement.is_favorited/rce": 0.0,
        "recap.engagement.is_favorited/share_of_reachable_rce": 0.915,
        "recap.engagement.is_replied/loss": 0.125,
        "recap.engagement.is_replied/rce": None,
        "recap.engagement.is_replied/share_of_reachable_rce": -66.9,
        "mean/loss": 0.1875,
        "examples": 7,
    }
    header, _, *rows = metrics_table(Measurement(3, "evaluate", "validation", metrics, {})).splitlines()
    assert header.split() == ["task", "loss", "RCE", "reached"]
    assert [row.split() for row in rows] == [
        ["is_favorited", "0.2500", "0.00", "91.5%"],
        ["is_replied", "0.1250", "-", "<0%"],
        ["mean", "0.1875", "-", "-"],
    ]
