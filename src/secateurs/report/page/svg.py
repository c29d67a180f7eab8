"""Draw charts as SVG: axes, curves and points. Colors and fonts come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from secateurs.markup import Markup, join, tag

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 16.0, 32.0
COLORS = 7  # classes c0 … c6 of the style sheet
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line through points. color: the class's number. stairs: a value holds until the next one. dots: mark the points."""

    name: str
    points: Sequence[Point]
    color: int = 0
    dashed: bool = False
    stairs: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A single point. shape: the number of a shape that distinguishes it without color. text: its description.
    spread: how far an error bar reaches above and below it."""

    x: float
    y: float
    text: str
    color: int = 0
    shape: int = 0
    link: str | None = None
    hollow: bool = False
    spread: float = 0.0


@dataclass(frozen=True)
class Axis:
    """An axis. form: formats a tick. span: values that the axis must include. zero: whether it begins at zero. whole: whether
    its ticks are whole numbers."""

    label: str
    form: Callable[[float], str] = lambda value: f"{value:g}"
    span: Sequence[float] = ()
    zero: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Scale:
    """Maps values to positions."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from low to high, in at most `most` steps."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    x: Axis,
    y: Axis,
    curves: Sequence[Curve] = (),
    marks: Sequence[Mark] = (),
    *,
    levels: Sequence[tuple[float, str]] = (),
    rules: Sequence[tuple[float, str]] = (),
    title: str = "",
    cursor: bool = False,
) -> Markup:
    """Draw a chart of curves and marks. levels: horizontal dotted lines. rules: vertical lines, each at the start of a labeled
    part. cursor: add a vertical line that the page's script moves, with the scale in the chart's `data-…` attributes."""
    xs = [p[0] for c in curves for p in c.points] + [m.x for m in marks] + [at for at, _ in rules]
    ends = [end for m in marks for end in (m.y - m.spread, m.y + m.spread)]
    ys = [p[1] for c in curves for p in c.points] + ends + [at for at, _ in levels]
    across = _scale(x, xs, LEFT, WIDTH - RIGHT, 0.05 if marks else 0.0)
    up = _scale(y, ys, HEIGHT - BOTTOM, TOP, 0.06)
    parts = [
        *_axes(x, y, across, up),
        *(
            tag("line", tag("title", name), x1=LEFT, x2=WIDTH - RIGHT, y1=up(at), y2=up(at), class_="level")
            for at, name in levels
        ),
        *(
            tag("g", tag("line", x1=across(at), x2=across(at), y1=TOP - 12, y2=HEIGHT - BOTTOM, class_="rule"),
                tag("text", name, x=across(at) + 2, y=TOP - 5, class_="note"))
            for at, name in rules
        ),
        *(part for curve in curves for part in _drawn(curve, across, up)),
        *(_marked(mark, across, up) for mark in marks),
    ]  # fmt: skip
    data: dict[str, object] = {}
    if cursor:
        parts.append(tag("line", x1=across.end, x2=across.end, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"))
        data = {"data_low": across.low, "data_high": across.high, "data_start": across.start, "data_end": across.end}
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=title, class_="chart", **data)


def legend(curves: Sequence[Curve], levels: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draw the legend of a chart's lines."""
    drawn = [*((_line(curve), curve.name) for curve in curves), *(("level", name) for _, name in levels)]
    return tag("ul", *(tag("li", _sample(kind), name) for kind, name in drawn), class_="legend")


def _sample(kind: str) -> Markup:
    middle = tag("line", x1=0, x2=18, y1=5, y2=5, class_=kind)
    return tag("svg", middle, viewBox="0 0 18 10", width=18, height=10, aria_hidden="true")


def symbol(color: int, shape: int, hollow: bool = False) -> Markup:
    """Draw a single mark for a legend or a table."""
    return tag(
        "svg", _form(6.0, 6.0, color, shape, hollow), viewBox="0 0 12 12", width=12, height=12, aria_hidden="true"
    )


def _scale(axis: Axis, values: Sequence[float], start: float, end: float, margin: float) -> Scale:
    known = [v for v in (*values, *axis.span) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if axis.zero:
        low = min(0.0, low)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (0.5 if low else 0.0), high + 0.5
    space = (high - low) * margin
    return Scale(low if axis.zero and low == 0 else low - space, high + space, start, end)


def _axes(x: Axis, y: Axis, across: Scale, up: Scale) -> Iterator[Markup]:
    for value in ticks(up.low, up.high):
        at = up(value)
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid")
        yield tag("text", y.form(value), x=LEFT - 5, y=at + 3, class_="tick end")
    base = HEIGHT - BOTTOM
    yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis")
    for value in (v for v in ticks(across.low, across.high) if not x.whole or v == round(v)):
        yield tag("line", x1=across(value), x2=across(value), y1=base, y2=base + 3, class_="axis")
        yield tag("text", x.form(value), x=across(value), y=base + 12, class_="tick middle")
    yield tag("text", x.label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="label middle")
    place = f"translate(9 {(TOP + base) / 2:g}) rotate(-90)"
    yield tag("text", y.label, transform=place, class_="label middle")


def _drawn(curve: Curve, across: Scale, up: Scale) -> Iterator[Markup]:
    points = [p for p in curve.points if math.isfinite(p[0]) and math.isfinite(p[1])]
    if not points:
        return
    path = [f"M{across(points[0][0]):.1f} {up(points[0][1]):.1f}"]
    for px, py in points[1:]:
        path.append(f"H{across(px):.1f}V{up(py):.1f}" if curve.stairs else f"L{across(px):.1f} {up(py):.1f}")
    yield tag("path", tag("title", curve.name), d="".join(path), class_=_line(curve))
    if curve.dots:
        for px, py in points:
            yield tag("circle", cx=across(px), cy=up(py), r=2.2, class_=f"dot c{curve.color % COLORS}")


def _line(curve: Curve) -> str:
    return f"line c{curve.color % COLORS}" + " dashed" * curve.dashed


def _marked(mark: Mark, across: Scale, up: Scale) -> Markup:
    x, y = across(mark.x), up(mark.y)
    drawn = tag(
        "g", tag("title", mark.text), *_spread(mark, x, up), _form(x, y, mark.color, mark.shape, mark.hollow), class_="mark"
    )  # fmt: skip
    return drawn if mark.link is None else tag("a", drawn, href=mark.link)


def _spread(mark: Mark, x: float, up: Scale) -> Iterator[Markup]:
    """Draw an error bar with a cap at each end."""
    if mark.spread:
        low, high = up(mark.y - mark.spread), up(mark.y + mark.spread)
        path = f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}"
        yield tag("path", d=path, class_=f"spread c{mark.color % COLORS}")


def _form(x: float, y: float, color: int, shape: int, hollow: bool) -> Markup:
    """Draw a circle, a square, a triangle, a diamond, or an inverted triangle."""
    name, r = f"{'ring' if hollow else 'dot'} c{color % COLORS}", 4.2
    corners = (
        None,
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        ((0, -1.25), (1.2, 0.95), (-1.2, 0.95)),
        ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        ((0, 1.25), (1.2, -0.95), (-1.2, -0.95)),
    )[shape % 5]
    if corners is None:
        return tag("circle", cx=x, cy=y, r=r, class_=name)
    return tag("polygon", points=" ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners), class_=name)


def cells(dark: Sequence[Sequence[bool]], size: float = 6.0) -> Markup:
    """Draw a small grid, such as a kernel's, that is dark where True."""
    rows, columns = len(dark), max((len(row) for row in dark), default=0)
    parts = [
        tag("rect", x=j * size, y=i * size, width=size, height=size, class_="on" if one else "off")
        for i, row in enumerate(dark)
        for j, one in enumerate(row)
    ]
    w, h = columns * size, rows * size
    return tag("svg", join(parts), viewBox=f"-0.5 -0.5 {w + 1:g} {h + 1:g}", width=w + 1, height=h + 1, class_="cells")
