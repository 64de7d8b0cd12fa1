"""A figure's SVG without what no reader sees: digits beyond a hundredth of a point, names, remarks, blanks."""

from __future__ import annotations

import re
from string import ascii_lowercase

COURSE = re.compile(r'(?<= d=")[^"]*|(?<= x=")[^"]*|(?<= y=")[^"]*|(?<=translate\()[^)]*')
PATH = re.compile(r'(?<= d=")[^"]*')
STYLE = re.compile(r'(?<= style=")[^"]*')
INDENTED = re.compile(r"\n\s+")
BREAK = re.compile(r" ?\n")  # before a letter or at the end: no blank is needed there
FINE = re.compile(r"(\.\d\d)\d+")
ZEROS = re.compile(r"\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)")
UNSEEN = re.compile(r"<metadata>.*?</metadata>\s*|<!DOCTYPE[^>]*>\s*|<!--.*?-->\s*", re.DOTALL)
NAME = re.compile(r' id="([^"]*)"')
POINTER = re.compile(r'(?<="#)[^"]+(?=")|(?<=url\(#)[^)]+(?=\))')
LONE = re.compile(r"<g>\s*(<use\b[^>]*/>)\s*</g>")


def coarser(drawing: str) -> str:
    """An SVG whose paths and places end their numbers at a hundredth of a point, without line breaks or indentation.

    >>> coarser('<path d="M 102.540158 63.3 L -99.9931 0.125" style="stroke-width: 0.125"/>')
    '<path d="M102.54 63.3 L-99.99 0.12" style="stroke-width: 0.125"/>'
    """
    drawing = COURSE.sub(lambda course: ZEROS.sub(r"\1", FINE.sub(r"\1", BREAK.sub("", course[0]))), drawing)
    drawing = PATH.sub(lambda path: re.sub(r"(?<=[A-Za-z]) | (?=-)", "", path[0]), drawing)
    return INDENTED.sub("\n", drawing)


def lighter(drawing: str) -> str:
    """An SVG that shows the same: coarser, without remarks, with short names where something points, else with none.

    >>> drawing = '<g id="axes_1"><!-- 0.5 --><path id="m3d8" style="fill: none; stroke: #000"/></g>'
    >>> lighter(drawing + '<g id="x"><use href="#m3d8"/></g>')
    '<g><path id="a" style="fill:none;stroke:#000"/></g><use href="#a"/>'
    """
    drawing = UNSEEN.sub("", coarser(drawing))
    drawing = STYLE.sub(lambda style: re.sub(r"(?<=[:;]) ", "", style[0]), drawing)
    wanted, short = set(POINTER.findall(drawing)), {}
    for name in NAME.findall(drawing):
        if name in wanted:
            number = len(short)
            short.setdefault(name, ascii_lowercase[number % 26] + (str(number // 26) if number > 25 else ""))
    drawing = NAME.sub(lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", drawing)
    drawing = POINTER.sub(lambda found: short.get(found[0], found[0]), drawing)
    drawing, before = re.sub(r">\s*\n\s*<", "><", drawing), ""
    while drawing != before:  # groups in groups
        drawing, before = LONE.sub(r"\1", drawing), drawing
    return drawing
