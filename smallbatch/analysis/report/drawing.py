"""Draw small SVG figures that follow the light or dark theme of the page.

Matplotlib draws with placeholder colours, which are then replaced by CSS variables. A batch size has the same hue in
all figures and in both themes, and also its own lightness, for readers who cannot distinguish the hues. A method has a
colour and a marker. Text is not converted to paths, so the browser renders it in its own font.
"""

import functools
import io
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import quoteattr

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from smallbatch.analysis.report.tables import Row, batch_text, column, short_count, split
from smallbatch.runs.escaping import printable

WIDTH_INCHES, PLOT_INCHES = 4.6, 2.5  # width of a figure, height of the plot in it
LINE_INCHES = 0.22
TITLE_CHARACTERS, LABEL_CHARACTERS = 46, 42  # per line of the title, and of the legend
TITLE_LINES = 4  # a longer title is truncated
INK = "#000000"  # placeholder for the colour of text
STYLE = {
    "axes.edgecolor": "#0c0000",
    "axes.grid": True,
    "axes.labelcolor": "#000000",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72.0,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "grid.color": "#0c0000",
    "grid.linewidth": 0.5,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "smallbatch",
    "text.color": "#000000",
    "text.parse_math": False,
    "xtick.color": "#000000",
    "ytick.color": "#000000",
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
}
ID = r'(\bid="|url\(#|href="#)'  # what precedes an id in an SVG
MARKERS = "osD^vPX*<>ph"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (4, 1.2, 1, 1.2)))
# The eight colours of Okabe and Ito, slightly darker in the light theme and lighter in the dark theme.
METHODS_LIGHT = ("#0064a6", "#c14e00", "#00805f", "#9c4d80", "#8a6a00", "#2b7aa8", "#555555", "#7a3b12")
METHODS_DARK = ("#5fb3f0", "#ff9350", "#3ccf9f", "#e9a0cd", "#f0c23c", "#8fd3ff", "#bbbbbb", "#d9a066")
BATCH_LEVELS = 49  # quarters of a doubling from 1 to 4,096 sequences
SPREAD = 8.0  # the first 8 doublings get half of the colours, since most grids compare small batch sizes
# From batch size 1 to 4,096: the hue in degrees (blue, violet, red, orange, ochre), and the lightness in each theme,
# with a contrast of at least 3:1 to the page.
HUES, LIGHT_LIGHTNESS, DARK_LIGHTNESS = (262.0, 460.0), (0.36, 0.65), (0.58, 0.93)


def batch_colour(batch_size: float) -> str:
    """Return the placeholder colour of a batch size."""
    level = np.clip(round(4 * np.log2(batch_size)), 0, BATCH_LEVELS - 1)
    return f"#0b00{int(level):02x}"


def method_style(index: int) -> dict:
    """Return colour, marker and dashes of the method with this index."""
    colours = len(METHODS_LIGHT)
    return {
        "color": f"#0a00{index % colours:02x}",
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // colours % 4],
    }


def by_method(methods: Sequence[str], rows: Sequence[Row]) -> Iterator[tuple[list[Row], dict]]:
    """Yield the rows of each method with the keyword arguments of its line: label, colour, marker and dashes."""
    for (method,), own in split(rows, "arm").items():
        yield own, {"label": label_text(method, LABEL_CHARACTERS), **method_style(methods.index(method))}


@functools.cache
def palette() -> dict[str, tuple[str, str]]:
    """Return {CSS variable: (colour in the light theme, colour in the dark theme)}."""
    doublings = np.arange(BATCH_LEVELS) / 4
    colours = {}
    for i, x in enumerate((1 - 2 ** (-doublings / SPREAD)) / (1 - 2 ** (-doublings[-1] / SPREAD))):
        hue, *lightness = (np.interp(x, (0, 1), ends) for ends in (HUES, LIGHT_LIGHTNESS, DARK_LIGHTNESS))
        colours[f"--b{i}"] = (from_oklch(lightness[0], hue), from_oklch(lightness[1], hue))
    colours |= {f"--m{i}": pair for i, pair in enumerate(zip(METHODS_LIGHT, METHODS_DARK, strict=True))}
    return colours | {"--ink": ("#1c1c1e", "#e8e8ea"), "--line": ("#d4d4d8", "#46464c")}


def from_oklch(lightness: float, hue_degrees: float) -> str:
    """Return the sRGB colour with this lightness and hue and the largest possible chroma, at most 0.19.

    Source: Ottosson 2020, "A perceptual color space for image processing" (the OKLCH space).
    """
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    red = (4.0767416621, -3.3077115913, 0.2309699292)
    green = (-1.2684380046, 2.6097574011, -0.3413193965)
    blue = (-0.0041960863, -0.7034186147, 1.707614701)
    to_rgb = np.array([red, green, blue])
    angle = np.deg2rad(hue_degrees)
    rgb = np.zeros(3)
    for chroma in np.arange(0.19, 0.0, -0.005):
        rgb = to_rgb @ (to_lms @ np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])) ** 3
        if (rgb >= 0).all() and (rgb <= 1).all():
            break
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * np.clip(rgb, 0, 1) ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in np.clip(encoded, 0, 1))


def new_axes(x_label: str, title: str, left_inches: float = 0.55) -> Axes:
    """Return the axes of a new figure. Use it in the context of `style()`. The title is the label of y."""
    axes = Figure().add_subplot()
    axes.set_xlabel(label_text(x_label, TITLE_CHARACTERS))
    lines = textwrap.wrap(printable(title), TITLE_CHARACTERS, max_lines=TITLE_LINES, placeholder="…")
    axes.figure.text(0, 0, "\n".join(lines), va="top")
    _lay_out(axes, left_inches, 0)
    return axes


def _lay_out(axes: Axes, left_inches: float, legend_lines: int) -> None:
    """Set the size of the figure and of its margins. They are fixed, since measuring all texts would be slow."""
    title = axes.figure.texts[0]
    below, above = 0.5, LINE_INCHES * (legend_lines + 0.2 + title.get_text().count("\n") + 1)
    height, left = below + PLOT_INCHES + above, left_inches / WIDTH_INCHES
    figure_of(axes).set_size_inches(WIDTH_INCHES, height)
    axes.set_position((left, below / height, 1 - left - 0.12 / WIDTH_INCHES, PLOT_INCHES / height))
    title.set_position((left, 1 - 0.03 / height))


def label_text(name: str, characters: int) -> str:
    """Return a name as a label of one line, with an ellipsis in the middle of a long name."""
    label = " ".join(printable(name).split())
    if len(label) > characters:
        half = characters // 2
        label = f"{label[:half]}…{label[half + 1 - characters :]}"
    return f" {label}" if label.startswith("_") else label  # matplotlib hides labels that start with _


def figure_of(axes: Axes) -> Figure:
    """Return the figure of axes made by `new_axes`."""
    return typing.cast(Figure, axes.figure)  # matplotlib's type allows for figures inside figures


def style():
    """Return the context manager in which figures are drawn."""
    return matplotlib.rc_context(typing.cast(dict, STYLE))


def batch_axes(title: str, batch_sizes: Sequence[float]) -> Axes:
    """Return new axes over batch size, on a logarithmic scale with up to nine labelled ticks."""
    axes = new_axes("batch size (sequences)", title)
    axes.set_xscale("log", base=2)
    sizes = sorted(set(batch_sizes))
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: -(-len(sizes) // 9)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: batch_text(x)))
    if len(sizes) == 1:
        axes.set_xlim(sizes[0] / 2, sizes[0] * 2)
    return axes


def against_batch_size(title: str, rows: Sequence[Row], y: str, methods: Sequence[str], scale: float = 1.0) -> Axes:
    """Return axes with one line per method: column `y`, divided by `scale`, against batch size."""
    axes = batch_axes(title, [row["batch_size"] for row in rows])
    for own, style in by_method(methods, rows):
        axes.plot(column(own, "batch_size"), column(own, y) / scale, **style)
        if f"{y}_low" in own[0]:
            plot_intervals(axes, own, y, style["color"])
    return axes


def plot_intervals(axes: Axes, rows: Sequence[Row], y: str, color: str) -> None:
    """Draw the intervals of a column against batch size as vertical bars, if they are finite."""
    x, low, high = (column(rows, name) for name in ("batch_size", f"{y}_low", f"{y}_high"))
    finite = np.isfinite(low) & np.isfinite(high)
    axes.vlines(x[finite], low[finite], high[finite], color=color, linewidth=1.0, alpha=0.8)


def count_axis(axis, log: bool = True, whole: bool = False) -> None:
    """Write the ticks of an axis as counts with suffixes; by default on a logarithmic scale."""
    if log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(FixedLocator(log_ticks(*axis.get_view_interval())))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number_text(x)))


def log_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers between two ends, or fewer if there are fewer."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, *range(2, 10))):
        ticks = (mantissa * 10.0**decade for decade in decades for mantissa in mantissas)
        found = [tick for tick in ticks if low <= tick <= high]
        if len(found) >= 3:
            break
    return found[:: -(-len(found) // 7)] if found else [low, high]


def number_text(x: float) -> str:
    """Write a tick label with up to three digits, with a suffix from 1,000 on."""
    if x == 0:
        return "0"
    if abs(x) >= 1e15:
        return f"{x:.0e}".replace("e+", "e")
    if abs(x) >= 1000:
        return short_count(x)
    return f"{x:.3g}"


def multiplier_text(log2: float) -> str:
    """Format the multiplier 2^log2, such as 1/8, 1 or 8."""
    if not float(log2).is_integer():
        return f"{2.0**log2:.2g}"
    return f"1/{2 ** -int(log2)}" if log2 < 0 else f"{2 ** int(log2)}"


def legend(axes: Axes) -> None:
    """Add the legend between the title and the plot, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    left_inches = axes.get_position().x0 * WIDTH_INCHES
    room = 72 * (WIDTH_INCHES - left_inches)
    columns = max(1, min(len(labels), int(room // (32 + 5.8 * max(map(len, labels))))))
    lines = -(-len(labels) // columns)
    _lay_out(axes, left_inches, lines)
    axes.legend(
        handles,
        labels,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.03, 1.0),
        borderaxespad=0.1,
        handlelength=1.5,
        columnspacing=0.9,
        handletextpad=0.5,
        labelspacing=0.3,
    )


def to_svg(axes: Axes, name: str, description: str) -> str:
    """Return the figure as an <svg> element for a page that defines the variables of `palette()`.

    The ids begin with `name`, so that one page can hold many figures. `description` is for screen readers.
    """
    buffer = io.StringIO()
    axes.figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    # savefig would draw twice
    FigureCanvasSVG(figure_of(axes)).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The style element of matplotlib would apply to the whole page, and its comments repeat all text.
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = _in_tags(text, lambda tag: re.sub(ID, lambda m: f"{m[1]}{name}-", _themed(tag)))
    attributes = f' role="img" aria-label={quoteattr(printable(description))}'
    return re.sub(r' width="[^"]*" height="[^"]*"', lambda _: attributes, text, count=1)


def _in_tags(svg: str, change: Callable[[str], str]) -> str:
    """Apply a function to the tags of an SVG, but not to the text between them, such as names of methods."""
    return re.sub(r"<[^>]*>", lambda m: change(m[0]), svg)


def _themed(tag: str) -> str:
    """Return a tag with CSS variables instead of placeholder colours, and with the system font."""
    tag = re.sub(r"#0b00([0-9a-f]{2})", lambda m: f"var(--b{int(m[1], 16)})", tag)
    tag = re.sub(r"#0a00([0-9a-f]{2})", lambda m: f"var(--m{int(m[1], 16)})", tag)
    tag = tag.replace("#0c0000", "var(--line)").replace("#000000", "var(--ink)")
    tag = tag.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    return tag.replace("<text ", '<text fill="var(--ink)" ')  # matplotlib omits the fill of black text


def standalone(svg: str) -> str:
    """Return the SVG as a file that also defines its colours for both themes and a background."""
    used = set(re.findall(r"var\((--\w+)\)", svg))
    colours = {name: pair for name, pair in palette().items() if name in used}
    rules = [";".join(f"{name}:{pair[i]}" for name, pair in colours.items()) for i in (0, 1)]
    css = f"svg{{background:#fff;{rules[0]}}}@media(prefers-color-scheme:dark){{svg{{background:#161618;{rules[1]}}}}}"
    return re.sub(r"(<svg[^>]*>)", lambda m: f"{m[1]}<style>{css}</style>", svg, count=1)
