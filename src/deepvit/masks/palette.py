"""Colours of classes, to show masks in."""

from __future__ import annotations

Colour = tuple[int, int, int]


def palette(count: int, bits: int = 8) -> list[Colour]:
    """``count`` colours that are told apart, the first black: the map of the Pascal VOC development kit.

    The bits of a class's number are dealt out to red, green and blue in turn, from the highest bit of each on.
    """
    colours = []
    for number in range(count):
        rgb, rest = [0, 0, 0], number
        for place in range(bits):
            for channel in range(3):
                rgb[channel] |= ((rest >> channel) & 1) << (bits - 1 - place)
            rest >>= 3
        colours.append((rgb[0], rgb[1], rgb[2]))
    return colours


def rgb(text: str) -> Colour:
    """``"0a66c8"`` as red, green and blue."""
    red, green, blue = bytes.fromhex(text)
    return red, green, blue
