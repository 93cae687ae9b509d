"""Drawing: the colours of light and dark, panels side by side, labels at the ends of lines, and SVG and PNG files.

The same numbers give the same bytes.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
from markupsafe import escape

from pipeline.grid.cells import PAIR, SPECTRAN
from pipeline.report.gains import ALL_PAIRS, BASE
from pipeline.report.titles import pair_title, title

# name of a CSS variable -> its value in light mode, which is unique, and in dark mode. Text and lines have a contrast of at least
# 4.5 to the ground (tests/pipeline/report/test_canvas.py).
COLOURS = {
    "ink": ("#1d2026", "#e4e6ea"),
    "ground": ("#fffffe", "#15171b"),
    "other": ("#6b717b", "#949ba8"),
    "faint": ("#d9dce2", "#363b44"),
    "spectran": ("#c2185b", "#ff79a8"),
    "leader": ("#1257b8", "#82b4ff"),
}
INK, GROUND, OTHER, FAINT, SPECTRAN_COLOUR, LEADER = (light for light, _ in COLOURS.values())
COLUMNS = 3  # panels in a row

matplotlib.use("Agg")
matplotlib.rcParams |= {
    "svg.hashsalt": "spectran",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], GROUND),
}
from matplotlib import pyplot as plt  # noqa: E402 (the backend and its settings come first)
from matplotlib.artist import Artist  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Draw = Callable[[Axes, pl.DataFrame], None]


def variables(mode: int) -> str:
    """Return the CSS declarations of the colours in light (0) or dark (1) mode."""
    return " ".join(f"--{name}: {values[mode]};" for name, values in COLOURS.items())


def panel_title(block: pl.DataFrame) -> str:
    """Return the heading of a panel: "Office, SASRec"."""
    return "Mean over all pairs" if block["dataset"][0] == ALL_PAIRS else pair_title(block)


class Canvas:
    """Draws figures into a directory. SpecTran has a colour, the leader has another, Base is dashed, all others are grey.

    `drawn` collects the names of the figures.
    """

    def __init__(self, directory: Path, leader: str | None = None) -> None:
        self.directory = directory
        self.leader = leader
        self.drawn: set[str] = set()
        self._hover: list[str] = []

    def colour(self, adapter: str) -> str:
        if adapter == SPECTRAN:
            return SPECTRAN_COLOUR
        return LEADER if adapter == self.leader else INK if adapter == BASE else OTHER

    def line(self, adapter: str) -> dict:
        """Return the style of an adapter's line."""
        strong = adapter in (SPECTRAN, self.leader)
        return {
            "color": self.colour(adapter),
            "linewidth": 2.2 if strong else 1.3,
            "linestyle": "--" if adapter == BASE else "-",
            "zorder": 4 if strong else 3,
        }

    def hover(self, artist: Artist, text: str) -> None:
        """Let the SVG show a text where the pointer is over an artist."""
        artist.set_gid(f"value-{len(self._hover)}")
        self._hover.append(text)

    def dot(self, axis: Axes, x: float | str, y: float | str, adapter: str, text: str, hollow: bool = False) -> None:
        """Draw one value. hollow: of runs that support no conclusion."""
        style: dict[str, Any] = {
            "markerfacecolor": GROUND if hollow else self.colour(adapter),
            "markeredgecolor": self.colour(adapter),
        }
        (artist,) = axis.plot([x], [y], "o", markersize=6 if adapter in (SPECTRAN, self.leader) else 5, zorder=5, **style)
        self.hover(artist, text)

    def interval(self, axis: Axes, low: float | None, high: float | None, at: float, adapter: str, along_x: bool = True) -> None:
        """Draw an interval; nothing if it is not known."""
        if low is None or high is None:
            return
        style = self.line(adapter) | {"linestyle": "-"}
        axis.plot(*(([low, high], [at, at]) if along_x else ([at, at], [low, high])), **style)

    def rows(self, axis: Axes, adapters: list[str]) -> None:
        """Label the rows of a panel by adapter, the first one at the top, with the colours of those that stand out."""
        axis.set_yticks(range(len(adapters)), [title(name) for name in adapters])
        axis.set_ylim(len(adapters) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        for label, name in zip(axis.get_yticklabels(), adapters, strict=True):
            if name in (SPECTRAN, self.leader):
                label.set(color=self.colour(name), fontweight="bold")

    def label_ends(self, axis: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
        """Write the names of lines at the right margin, apart from each other. ends: x and y of a line's end, and its adapter.

        The limits of the axes must be final.
        """
        low, high = axis.get_ylim()
        gap = (high - low) / max(18.0, len(ends) - 1)
        ordered = sorted(ends, key=lambda end: end[1])
        places: list[float] = []
        for _, y, _ in ordered:
            places.append(max(y, places[-1] + gap) if places else y)
        for i in reversed(range(len(places))):  # push back what is above the top
            ceiling = places[i + 1] - gap if i + 1 < len(places) else high
            places[i] = min(places[i], ceiling)
        right = axis.get_yaxis_transform()
        for (x, y, adapter), place in zip(ordered, places, strict=True):
            colour = self.colour(adapter)
            weight = "bold" if adapter in (SPECTRAN, self.leader) else "normal"
            axis.annotate(
                title(adapter),
                xy=(x, y),
                xytext=(1.05, place),
                textcoords=right,
                fontsize=8.5,
                fontweight=weight,
                color=colour,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "linestyle": ":", "shrinkA": 1, "shrinkB": 2},
            )

    def panels(self, name: str, data: pl.DataFrame, draw: Draw, height: float = 3.4) -> None:
        """Draw one panel per dataset and backbone, and save the figure as `name`. height: of a panel, in inches."""
        blocks = data.partition_by(PAIR, maintain_order=True) if data.height else []
        if not blocks:
            return
        columns = min(COLUMNS, len(blocks))
        lines = -(-len(blocks) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(0.4 + 5 * columns, height * lines), squeeze=False, layout="constrained"
        )
        self._hover = []
        for axis, block in zip(axes.flat, blocks, strict=False):
            draw(axis, block)
            axis.set_title(panel_title(block), loc="left", fontweight="bold")
        for axis in axes.flat[len(blocks) :]:
            axis.set_axis_off()
        file = self.directory / f"{name}.svg"
        figure.savefig(file, metadata={"Date": None})
        file.write_text(self._finished(file.read_text(encoding="utf-8")), encoding="utf-8")
        (self.directory / "png").mkdir(exist_ok=True)  # the folder that `dvc plots` shows
        figure.savefig(self.directory / "png" / f"{name}.png", dpi=120)
        plt.close(figure)
        self.drawn.add(name)

    def _finished(self, svg: str) -> str:
        """Return matplotlib's SVG with colours that follow the reader's light or dark mode, and with values to hover over."""
        for variable, (light, _) in COLOURS.items():
            svg = svg.replace(light, f"var(--{variable})")
        style = f":root {{ {variables(0)} }} @media (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}"
        svg = re.sub(r"(<svg [^>]*>)", rf"\1\n <style>{style}</style>", svg, count=1)
        return re.sub(
            r'<g id="value-(\d+)">', lambda found: f"{found[0]}<title>{escape(self._hover[int(found[1])])}</title>", svg
        )
