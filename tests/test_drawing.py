"""Colours, ticks and text of the figures."""

import colorsys
import itertools
from xml.etree import ElementTree

import pytest

from smallbatch.analysis.report import drawing


def test_each_batch_size_has_its_own_colour():
    sizes = [2**k for k in range(13)]
    colours = [drawing.batch_colour(size) for size in sizes]
    assert len(set(colours)) == 13
    assert drawing.batch_colour(2**20) == drawing.batch_colour(2**12)  # the last colour
    palette = drawing.palette()
    for theme in (0, 1):
        assert len({palette[f"--b{int(colour[-2:], 16)}"][theme] for colour in colours}) == 13


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_batch_sizes_differ_in_lightness_and_have_the_same_hue_in_both_themes(theme):
    palette = drawing.palette()
    shades = [luminance(palette[f"--b{4 * k}"][theme]) for k in range(0, 13, 2)]  # 1, 4, 16, ..., 4096
    assert all(b > 1.1 * a for a, b in itertools.pairwise(shades))
    for k in range(13):
        hues = [colorsys.rgb_to_hsv(*bytes.fromhex(colour[1:]))[0] for colour in palette[f"--b{4 * k}"]]
        assert abs((hues[0] - hues[1] + 0.5) % 1 - 0.5) < 0.06  # of the circle


@pytest.mark.parametrize(("theme", "paper"), [(0, "#ffffff"), (1, "#161618")])
def test_lines_have_enough_contrast_in_both_themes(theme, paper):
    # WCAG 2.1 requires 3:1 for graphics and 4.5:1 for text. Grid lines carry no information.
    for name, pair in drawing.palette().items():
        a, b = sorted((luminance(pair[theme]), luminance(paper)))
        least = {"--ink": 7.0, "--line": 1.2}.get(name, 3.0)
        assert (b + 0.05) / (a + 0.05) >= least, name


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 1000, [1, 10, 100, 1000]), (0.9, 60, [1, 3, 10, 30]), (1, 9, [1, 2, 5]), (1.9, 7.5, [2, 3, 5, 7])],
)
def test_logarithmic_ticks_are_round_and_few(low, high, ticks):
    assert drawing.log_ticks(low, high) == pytest.approx(ticks)
    assert 1 <= len(drawing.log_ticks(low, low * 1.01)) <= 7
    assert len(drawing.log_ticks(1e-9, 1e12)) <= 7


def test_markup_and_mathematics_in_a_name_are_text():
    with drawing.style():
        axes = drawing.new_axes("x", "<script>alert(1)</script> $x^2$")
        axes.plot([1, 2], [3, 4], label="a & b", **drawing.method_style(0))
        drawing.legend(axes)
        svg = drawing.to_svg(axes, "name", 'described as "<this>"')
    root = ElementTree.fromstring(svg)
    words = "".join(root.itertext())
    assert "<script>alert(1)</script> $x^2$" in words and "a & b" in words
    assert root.get("aria-label") == 'described as "<this>"'
    assert not [element for element in root.iter() if element.tag.endswith("script")]
