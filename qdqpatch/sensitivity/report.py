"""What was measured and found, as rows of tables and sentences."""

from __future__ import annotations

from qdqpatch.sensitivity.measure import Sensitivity
from qdqpatch.sensitivity.search import MixedPrecision, Trial
from qdqpatch.spelling import counted, spelled
from qdqpatch.tasks.agreement import CORRELATION, UNCHANGED

COST_COLUMNS = ("Unit", "Quantizers", "Cost", "Share of all costs")


def cost_title(sensitivity: Sensitivity) -> str:
    """Say what the table of costs shows."""
    return f"Cost of quantizing each alone: {sensitivity.measure}, {counted(sensitivity.examples, 'example')}"


def cost_rows(sensitivity: Sensitivity) -> list[list[str]]:
    """Return a row for each unit, costliest first; a share of costs that are below 0 has no meaning."""
    costs = [cost.cost for cost in sensitivity.costs]
    total = sum(costs) if min(costs) >= 0 else 0.0
    return [
        [
            cost.unit.name,
            str(len(cost.unit.quantizers)),
            number(cost.cost),
            f"{100 * cost.cost / total:.1f}%" if total else "-",
        ]
        for cost in sensitivity.costs
    ]


def trial_columns(found: MixedPrecision) -> tuple[str, ...]:
    """Return the names of the columns of `trial_rows`."""
    return (
        "Units in float",
        found.metric.capitalize() if found.metric in (UNCHANGED, CORRELATION) else found.metric,
        "Drop",
        "",
    )


def trial_rows(found: MixedPrecision) -> list[list[str]]:
    """Return the best trial of each number of units in float, and last the float model."""
    best: dict[int, Trial] = {}
    for trial in sorted(found.trials, key=lambda trial: (len(trial.float_units), trial.drop)):
        best.setdefault(len(trial.float_units), trial)
    rows = [
        [
            f"{count} of {found.units}",
            number(trial.value),
            f"{trial.drop:.2f}%",
            "chosen" if trial is found.best else "",
        ]
        for count, trial in best.items()
    ]
    only = "nothing else is within the limit" if found.config is None else ""
    return [*rows, [f"{found.units} of {found.units}", number(found.float_value), "0.00%", only]]


def conclusion(found: MixedPrecision) -> str:
    """Say in a sentence what has to stay in float."""
    if found.config is None:
        return (
            f"No unit can be quantized with a drop of at most {found.max_drop:g}%. Allow more, or give the "
            "model better ranges or training first."
        )
    result = f"{found.metric} {number(found.best.value)}, float {number(found.float_value)}"
    if not found.best.float_units:
        return f"Everything can be quantized: {result}."
    return f"To leave in float: {'; '.join(found.best.float_units)} ({result})."


def unresolved(found: MixedPrecision) -> str | None:
    """Say that the examples cannot tell the drop that is allowed from none; None if they can.

    None either where no drop at all is allowed: then what is measured counts.
    """
    if not found.max_drop or found.resolution is None or found.resolution <= found.max_drop:
        return None
    return (
        f"{counted(found.examples, 'example')} cannot resolve a drop of {found.max_drop:g}%: what is "
        "measured is only "
        f"right to about {found.resolution:.2g}%. Take more "
        f"of them{spelled('', ' (--samples)')}, or allow more."
    )


def departure(sensitivity: Sensitivity, found: MixedPrecision) -> str | None:
    """Say why what was chosen are not the costliest units; None if they are."""
    chosen = {*found.best.float_units}
    ranked = [cost.unit.name for cost in sensitivity.costs]
    last = max((place for place, name in enumerate(ranked) if name in chosen), default=-1)
    passed = [name for name in ranked[: last + 1] if name not in chosen]
    if not passed or found.config is None:
        return None
    return (
        f"The ranking has {'; '.join(passed)} before {ranked[last]}: it goes by the {sensitivity.measure} of "
        f"units that are quantized alone. With the others as chosen, {found.metric} stays within the drop "
        "though they are quantized."
    )


def number(value: float) -> str:
    """Write a number with 2 decimals, or with 3 digits that count if it is small."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"
