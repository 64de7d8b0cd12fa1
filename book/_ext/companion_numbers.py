"""Numbers as a reader wants to see them: powers of ten, intervals, percentages, times, bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from docutils import nodes

_POWER = re.compile(r"(?P<mantissa>\d+(?:\.\d+)?)e(?P<exponent>[+-]?\d+)")
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def number_nodes(text: str) -> list[nodes.Node]:
    """Turn text with numbers into nodes: ``1.5e-08`` becomes 1.5 × 10 with a raised −8, hyphens become minus signs.

    >>> "".join(node.astext() for node in number_nodes("< 1e-08"))
    '< 10−8'
    """
    result: list[nodes.Node] = []
    end = 0
    for match in _POWER.finditer(text):
        mantissa = match["mantissa"]
        before = _MINUS.sub("−", text[end : match.start()])
        result.append(nodes.Text(before + ("10" if mantissa == "1" else f"{mantissa}\u202f×\u202f10")))
        result.append(nodes.superscript("", str(int(match["exponent"])).replace("-", "−")))
        end = match.end()
    if end < len(text):
        result.append(nodes.Text(_MINUS.sub("−", text[end:])))
    return result


def plain(value: float) -> str:
    """Three significant digits, whole numbers whole.

    >>> plain(0.51234), plain(3000.0), plain(2.5e-9), plain(12345.6)
    ('0.512', '3,000', '2.5e-09', '12,346')
    """
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e3 else f"{value:.3g}"


def formatted(value: float, style: str) -> str:
    """One number in a style: a Python format, ``percent`` or ``percent.2``, or ``""`` for `plain`.

    >>> formatted(0.8183, "percent"), formatted(0.8183, "percent.0"), formatted(0.8183, ".2f")
    ('81.8', '82', '0.82')
    """
    if style.startswith("percent"):
        return f"{100 * value:.{style.partition('.')[2] or '1'}f}"
    return format(value, style) if style else plain(value)


def measured(
    value: float | Sequence[float], interval: Sequence[float] | None, style: str = "", *, with_interval: bool = True
) -> str:
    """A measured number with its interval.

    >>> measured(0.818, (0.811, 0.825), "percent").split()
    ['81.8', '%', '[81.1,', '82.5]']
    >>> measured([0.5, 0.25], None, ".2f")
    '0.50, 0.25'
    """
    percent = "\u202f%" if style.startswith("percent") else ""
    if isinstance(value, Sequence):
        return ", ".join(formatted(v, style) for v in value) + percent
    text = formatted(value, style) + percent
    if interval is None or not with_interval:
        return text
    return f"{text} [{formatted(interval[0], style)}, {formatted(interval[1], style)}]"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.52), duration(41.3), duration(312), duration(7500)
    ('0.5 s', '41 s', '5 min 12 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in words, in powers of 1,000.

    >>> size(1_434_000_000), size(52_000_000)
    ('1.4 GB', '52 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
