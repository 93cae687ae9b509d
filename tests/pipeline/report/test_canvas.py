"""Colours that can be read in light and in dark."""

import pytest

from pipeline.report.canvas import COLOURS


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
def test_every_colour_of_words_and_lines_can_be_read(mode: int) -> None:
    ground = luminance(COLOURS["ground"][mode])
    for name in ("ink", "other", "spectran", "leader"):
        low, high = sorted([ground, luminance(COLOURS[name][mode])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS), "a colour names its variable"
