"""The report: one HTML file that needs nothing else, light and dark, on screen and on paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from coupled_adam import palette
from coupled_adam.extras import needs
from coupled_adam.files import write_whole
from coupled_adam.palette import label
from coupled_adam.report.advice import DOUBTFUL, PRIMARY, Advice, Facts, interval_of
from coupled_adam.report.experiment import Result
from coupled_adam.report.pictures import pictures, shown_number
from coupled_adam.report.steps import CostSheet, next_steps
from coupled_adam.report.tables import measures_table, speed_up_of

with needs("cli"):
    import jinja2

REPORT_FILE = "report.html"
_TEMPLATE = "page.html.jinja"
# What a finding does, in words.
KINDS = {
    DOUBTFUL: "makes the comparison doubtful",
    "against": "speaks against",
    "holds up": "asks for more",
    "for": "speaks for",
    "note": "to be known",
}


def render(result: Result, facts: Facts, advice: Advice, costs: CostSheet | None = None) -> str:
    """The report as HTML.

    Args:
        result: of the experiment.
        facts: of the result.
        advice: on these facts.
        costs: prices; the defaults of ``CostSheet`` if not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return environment.get_template(_TEMPLATE).render(
        advice=advice,
        arm=label(facts.arm),
        costs=_costs(costs or CostSheet(), facts),
        css_dark=palette.css(dark=True),
        css_light=palette.css(),
        facts=facts,
        gains=_gains(facts),
        kinds=KINDS,
        measures=_measures(measures_table(result)),
        pictures=pictures(result, facts),
        primary=PRIMARY,
        result=result,
        steps=next_steps(facts, advice),
    )


def write_report(
    result: Result, out: Path, facts: Facts, advice: Advice, costs: CostSheet | None = None
) -> Path:
    """Write the report into a folder, whole or not at all; arguments as for ``render``.

    Raises:
        OSError: if it cannot be written.
    """
    path = out / REPORT_FILE
    write_whole(path, render(result, facts, advice, costs).encode())
    return path


def _gains(facts: Facts) -> list[dict[str, str]]:
    rows = []
    for one in facts.versus:
        row = {"rival": label(one.rival)}
        for name, values in (
            ("text", one.gains), ("twin", one.twin_gains), ("net", tuple(one.net)),
            ("common", one.common_gains),
        ):  # fmt: skip
            found = interval_of(values)
            row[name] = (
                f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found else "–"
            )
        rows.append(row)
    return rows


def _measures(table: pd.DataFrame) -> dict[str, Any]:
    """Measures down, arms across; each cell a mean with half the width of its interval."""
    arms = list(dict.fromkeys(table["optimizer"]))
    cells = {}
    for row in table.itertuples():
        half = (row.high - row.low) / 2
        shown = shown_number(row.mean, 4)
        cells[row.measure, row.optimizer] = (
            f"{shown} ± {shown_number(half, 2)}" if math.isfinite(half) else shown
        )
    rows = [
        (measure, [cells.get((measure, arm), "–") for arm in arms])
        for measure in dict.fromkeys(table["measure"])
    ]
    return {"arms": [label(arm) for arm in arms], "rows": rows}


def _costs(costs: CostSheet, facts: Facts) -> list[tuple[str, str]]:
    speed_up = speed_up_of(facts)
    saving = "not known" if math.isnan(speed_up) else f"{speed_up:.2f}"
    even = costs.break_even_hours
    rows = [
        ("Work: change, comparison, A/B, canary",
         f"{costs.work_hours:g} hours at {costs.work_price:g}"),
        ("Machine: this comparison", f"{costs.machine_hours:.2f} hours at {costs.machine_price:g}"),
        ("Introduction in all", f"{costs.cost:,.0f}"),
        (f"Effective speed-up over {label(facts.strongest.rival)}, if it holds at the large size",
         saving),
        ("Break-even: training from which on it pays",
         f"{even:,.0f} machine hours" if math.isfinite(even) else "never: nothing is saved"),
    ]  # fmt: skip
    if costs.planned_hours:
        rows.append(
            (f"Saved in the planned run of {costs.planned_hours:g} hours", f"{costs.saved:,.0f}")
        )
    return rows
