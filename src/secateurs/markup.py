"""HTML and SVG as text, escaped: for pages, and for objects that show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already. Jinja2 and `tag` take it as it is; any other text is escaped."""

    def __html__(self) -> str:
        return self


def text(value: object) -> Markup:
    """A value as HTML: escaped unless it is `Markup`."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Markup:
    return Markup("".join(map(text, parts)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """`tag("rect", width=3, stroke_width=1, class_="bar")` → `<rect width="3" stroke-width="1" class="bar"></rect>`.
    Attributes that are None are left out; numbers have at most two decimals."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


_CELL = "padding:.2em .8em .2em 0;font-variant-numeric:tabular-nums;text-align:"


def html_table(
    columns: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = "",
    right: Collection[int] | None = None,
) -> Markup:
    """A table for a notebook, with everything in it escaped. right: the columns of numbers; by default all but the first."""

    def row(kind: str, cells: Sequence[object]) -> Markup:
        aligned = ("right" if (i > 0 if right is None else i in right) else "left" for i in range(len(cells)))
        return tag("tr", *(tag(kind, cell, style=_CELL + side) for cell, side in zip(cells, aligned, strict=True)))

    head = tag("thead", row("th", columns)) if any(str(column) for column in columns) else ""
    title = tag("caption", caption, style="text-align:left;caption-side:top;padding:.3em 0") if caption else ""
    return tag("table", title, head, tag("tbody", *(row("td", cells) for cells in rows)))
