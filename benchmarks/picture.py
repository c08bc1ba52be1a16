"""The picture of the pace's benchmark: the lag against the polls of each workload, bide's as a line over its prices."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from paces import EVERY_3, FIXED, SDKS, ours
from verdicts import between

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from paces import Policy
    from verdicts import Runs

    Point = tuple[float, float]

OURS, THEIRS, FAINT, INK = "#0b6e75", "#8a8a8a", "#d5d5d5", "#333333"
COLUMNS = 4
SMALL = 7.5
TICKS = (0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200)


def draw(path: Path, found: Mapping[str, Runs], titles: Mapping[str, str]) -> None:
    """Write the picture of all workloads in *found* to *path*, each under its title."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    mpl.rcParams.update({"font.size": SMALL, "text.color": INK, "axes.labelcolor": INK})
    size = (max(4.2, 2.1 * columns), 0.4 + 2.1 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    panels = [axes for line in grid for axes in line]
    for number, (axes, (name, runs)) in enumerate(zip(panels, found.items(), strict=False)):
        _panel(axes, runs, is_first=number == 0)
        axes.set_title(f"{name}  {titles[name]}", fontsize=SMALL + 0.5, loc="left", color=INK)
    for axes in panels[len(found) :]:
        axes.remove()
    figure.supxlabel("polls a task", fontsize=SMALL + 1)
    figure.supylabel("mean lag, seconds", fontsize=SMALL + 1)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _panel(axes: Axes, runs: Runs, *, is_first: bool) -> None:
    fixed = [_point(runs, policy) for policy in FIXED]
    priced = [
        policy for policy in runs if policy.price is not None and len(runs[policy]) == len(runs[EVERY_3])
    ]
    curve = [_point(runs, policy) for policy in sorted(priced, key=lambda policy: policy.price or 0.0)]
    default, base = _point(runs, ours()), _point(runs, EVERY_3)
    _frame(axes, [*fixed, *curve])
    axes.plot(*zip(*fixed, strict=True), color=THEIRS, lw=1.2, marker="o", ms=3)
    for policy, (x, y) in zip(FIXED, fixed, strict=True):
        _label(axes, policy.name if is_first else policy.name.removeprefix("every "), x, y, (4, 3), THEIRS)
    sdks = [_point(runs, policy) for policy in SDKS if policy in runs]
    for point in sdks:
        axes.plot(*point, color=THEIRS, marker="x", ms=4)
    if is_first:
        for policy, (x, y) in zip(SDKS, sdks, strict=True):
            _label(axes, policy.name, x, y, (4, 3), THEIRS)
    axes.plot(*zip(*curve, strict=True), color=OURS, lw=1.6)
    axes.plot(*default, color=OURS, marker="o", ms=5)
    _label(axes, "bide" if is_first else "", *default, (-5, -8), OURS, side="right", weight="bold")
    lag = between(curve, base[0])
    if math.isfinite(lag):
        axes.plot([base[0]] * 2, [base[1], lag], color=OURS, lw=0.8, ls=":")
        middle = math.sqrt(base[1] * lag)
        _label(axes, f"÷ {base[1] / lag:.1f}", base[0], middle, (-3, -2), OURS, side="right")


def _frame(axes: Axes, points: Iterable[Point]) -> None:
    """Both axes in logarithms with plain numbers, and no more lines than are needed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    seen = list(points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, values, limit in (
        (axes.xaxis, [x for x, _ in seen], axes.set_xlim),
        (axes.yaxis, [y for _, y in seen], axes.set_ylim),
    ):
        limit(min(values) / 1.35, max(values) * 1.5)
        axis.set_major_locator(FixedLocator(TICKS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=SMALL - 0.5)
    axes.grid(color=FAINT, lw=0.4, alpha=0.6)


def _label(
    axes: Axes,
    text: str,
    x: float,
    y: float,
    offset: tuple[float, float],
    color: str,
    *,
    side: str = "left",
    weight: str = "normal",
) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha=side,
        fontsize=SMALL - 0.5,
        color=color,
        fontweight=weight,
    )


def _point(runs: Runs, policy: Policy) -> Point:
    """Polls and lag, the means over seeds."""
    seeds = runs[policy].values()
    return statistics.fmean(each.looks for each in seeds), statistics.fmean(each.lag for each in seeds)
