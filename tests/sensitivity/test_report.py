"""What is printed and drawn of costs and of what a search tried."""

from pathlib import Path

import numpy as np
import pytest

from qdqpatch import QDQConfig
from qdqpatch.errors import ReportError
from qdqpatch.sensitivity import MixedPrecision, Sensitivity, Trial, Unit, UnitCost
from qdqpatch.sensitivity.chart import write_chart
from qdqpatch.sensitivity.report import (
    conclusion,
    cost_rows,
    departure,
    number,
    trial_columns,
    trial_rows,
    unresolved,
)

NAMES = ("layer 0, attention", "layer 1, attention add", "head")
COSTS = Sensitivity(
    "KL divergence",
    9,
    tuple(
        UnitCost(Unit(name, "attention", ("a", "b")), cost)
        for name, cost in zip(NAMES, (0.03, 0.00996, 4e-5), strict=True)
    ),
)
TRIALS = (
    Trial((), 50.0, 37.5),
    Trial(NAMES[:1], 72.0, 10.0),
    Trial(NAMES[::2], 60.0, 25.0),
    Trial(NAMES[:2], 79.2, 1.0),
    Trial(NAMES[1:2], 79.6, 0.5),
)


def mixed(best: Trial = TRIALS[4], **changes: object) -> MixedPrecision:
    standard = {
        "metric": "F1",
        "higher_is_better": True,
        "float_value": 80.0,
        "max_drop": 1.0,
        "examples": 9,
        "units": 3,
        "trials": TRIALS,
        "best": best,
        "config": QDQConfig(),
    }
    return MixedPrecision(**standard | changes)


def test_rows_of_costs() -> None:
    assert cost_rows(COSTS) == [
        ["layer 0, attention", "2", "0.03", "75.0%"],
        ["layer 1, attention add", "2", "0.00996", "24.9%"],
        ["head", "2", "4e-05", "0.1%"],
    ]
    gaining = Sensitivity("drop of F1 in percent", 9, (*COSTS.costs, UnitCost(COSTS.costs[0].unit, -0.5)))
    assert [row[3] for row in cost_rows(gaining)] == ["-"] * 4


def test_rows_of_trials_are_the_best_of_each_size_and_the_float_model() -> None:
    assert trial_columns(mixed()) == ("Units in float", "F1", "Drop", "")
    assert trial_columns(mixed(metric="unchanged predictions"))[1] == "Unchanged predictions"
    assert trial_rows(mixed()) == [
        ["0 of 3", "50.00", "37.50%", ""],
        ["1 of 3", "79.60", "0.50%", "chosen"],
        ["2 of 3", "79.20", "1.00%", ""],
        ["3 of 3", "80.00", "0.00%", ""],
    ]
    none = mixed(Trial(NAMES, 80.0, 0.0), config=None)
    assert trial_rows(none)[-1] == ["3 of 3", "80.00", "0.00%", "nothing else is within the limit"]


def test_the_conclusion() -> None:
    assert conclusion(mixed()) == "To leave in float: layer 1, attention add (F1 79.60, float 80.00)."
    assert conclusion(mixed(TRIALS[0])) == "Everything can be quantized: F1 50.00, float 80.00."
    assert conclusion(mixed(config=None)).startswith("No unit can be quantized with a drop of at most 1%.")


def test_why_the_choice_is_not_the_ranking() -> None:
    line = departure(COSTS, mixed())
    assert line is not None
    assert line.startswith(
        "The ranking has layer 0, attention before layer 1, attention add: it goes by the KL"
    )
    assert line.endswith("With the others as chosen, F1 stays within the drop though they are quantized.")
    assert departure(COSTS, mixed(TRIALS[1])) is None
    assert departure(COSTS, mixed(TRIALS[0])) is None


def test_what_the_examples_cannot_resolve() -> None:
    assert unresolved(mixed()) is None
    assert unresolved(mixed(resolution=0.9)) is None
    assert unresolved(mixed(resolution=4.26)) == (
        "9 examples cannot resolve a drop of 1%: what is measured is only right to about 4.3%. Take more "
        "of them, or allow more."
    )


def test_numbers() -> None:
    assert [number(value) for value in (0.0, 1.23456, 79.996, 1234.5, -0.012345, 1e-7)] == [
        *("0", "1.23", "80.00", "1234.50", "-0.0123", "1e-07")
    ]


def test_the_limit() -> None:
    assert mixed().limit == pytest.approx(79.2, abs=1e-12)
    assert mixed(higher_is_better=False, float_value=5.0, max_drop=10.0).limit == pytest.approx(
        5.5, abs=1e-12
    )


@pytest.mark.parametrize("name", ["chart.png", "chart.svg"])
def test_a_chart(here: Path, name: str) -> None:
    file = Path("deep", name)
    for _ in range(2):  # the second time over the first
        write_chart(file, COSTS, mixed())
    assert [path.name for path in Path("deep").iterdir()] == [name]
    if name.endswith("png"):
        from matplotlib.image import imread

        pixels = imread(file)
        assert pixels.shape[1] == 1200
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
        return
    text = file.read_text(encoding="utf-8")
    for part in (
        *NAMES,
        "0.00996",
        "Cost of quantizing each alone: KL divergence, 9 examples",
        "What leaving units in float gains: F1, 9 examples",
        "units left in float, of 3",
        "drop of 1%",
        "one of them quantized again",
        "chosen: 1 in float",
        "left in float",
    ):
        assert text.count(f">{part}<") == 1, part


def test_a_chart_without_a_search(here: Path) -> None:
    write_chart(Path("costs.svg"), COSTS)
    text = Path("costs.svg").read_text(encoding="utf-8")
    assert "Cost of quantizing each alone" in text
    assert "left in float" not in text
    with pytest.raises(ReportError, match=r"must end in \.png or \.svg"):
        write_chart(Path("costs.pdf"), COSTS)
