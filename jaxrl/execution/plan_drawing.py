"""A plan as a picture: an inline SVG graph of boxes and arrows with counts and rates, built from plain strings."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from jaxrl.execution.nodes import Node, walk
from jaxrl.execution.plan_view import counts_text, format_rate, format_seconds, rate

_BOX_W, _BOX_H = 256, 62
_GAP_X, _GAP_Y = 34, 46
_MARGIN = 22
_LEGEND_H = 30
_FONT = "font-family=\"'Inter','Segoe UI','Helvetica Neue',Arial,sans-serif\""

_HALO = 'paint-order="stroke" stroke="#ffffff" stroke-width="3"'

# Fill, border and text colour by group of kinds; dark enough text on light fills to read in print too.
_COLOURS = {
    "source": ("#e6f4f1", "#2a9d8f", "#12524a"),
    "operator": ("#e9f0fb", "#3f6fc4", "#1d3a70"),
    "structure": ("#f3f4f6", "#8a94a3", "#394150"),
    "branch": ("#f3ecfa", "#8757b5", "#482a68"),
}
_GROUPS = {
    "source": "source",
    "gather_sync": "source",
    "gather_async": "source",
    "for_each": "operator",
    "combine": "operator",
    "transform": "operator",
    "union": "branch",
    "duplicate": "branch",
    "copy": "branch",
    "select": "branch",
}
_LEGEND = (("source", "source"), ("operator", "operator"), ("structure", "reshaping"), ("branch", "fork or join"))


class _Place(NamedTuple):
    x: float
    y: float


def draw_svg(root: Node) -> str:
    """The plan as an SVG picture: data flows from top to bottom, an arrow carries the number of items that took it.

    A box has the node's name, its kind and settings, and its items, rate and own time; a dashed border marks
    host-only nodes, a stack of boxes a node with several shards. Its tooltip has everything in full.
    """
    nodes = walk(root)
    places = _layout(nodes)
    width = max(place.x for place in places.values()) + _BOX_W + _MARGIN
    width = max(width, 2 * _MARGIN + 580)
    height = max(place.y for place in places.values()) + _BOX_H + _MARGIN + _LEGEND_H
    shift = (width - (max(p.x for p in places.values()) + _BOX_W + min(p.x for p in places.values()))) / 2
    places = {key: _Place(place.x + shift, place.y) for key, place in places.items()}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="execution plan" '
        'style="max-width:100%;height:auto">',
        '<defs><marker id="jaxrl-arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0.8 L9.5 5 L0 9.2 z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#ffffff"/>',
    ]
    for node in nodes:
        parts.extend(_arrow(child, node, places[id(child)], places[id(node)]) for child in node.inputs)
    parts.extend(_box(node, places[id(node)]) for node in nodes)
    parts.append(_legend(width, height))
    parts.append("</svg>")
    return "".join(parts)


def _layout(nodes: list[Node]) -> dict[int, _Place]:
    """Rows by distance from the end, so that branches meet side by side; columns by the order of the branches."""
    depth: dict[int, int] = {}
    for node in reversed(nodes):
        depth.setdefault(id(node), 0)
        for child in node.inputs:
            depth[id(child)] = max(depth.get(id(child), 0), depth[id(node)] + 1)
    for node in nodes:
        if node.kind == "copy":
            depth[id(node)] = depth[id(node.inputs[0])] - 1
    deepest = max(depth.values())
    column: dict[int, float] = {}
    leaves = 0
    copies: dict[int, list[Node]] = {}
    for node in nodes:
        for child in node.inputs:
            copies.setdefault(id(child), []).append(node)
    for node in nodes:
        if not node.inputs:
            column[id(node)] = float(leaves)
            # A stream that is duplicated takes as many columns as it has copies, and stands in their middle.
            fan = _fan(node, copies)
            column[id(node)] += (fan - 1) / 2
            leaves += fan
        else:
            column[id(node)] = sum(column[id(child)] for child in node.inputs) / len(node.inputs)
            siblings = copies[id(node.inputs[0])]
            if len(siblings) > 1:
                column[id(node)] += siblings.index(node) - (len(siblings) - 1) / 2
    rows: dict[int, list[Node]] = {}
    for node in nodes:
        rows.setdefault(deepest - depth[id(node)], []).append(node)
    places: dict[int, _Place] = {}
    for row, members in rows.items():
        right = -1.0
        for node in sorted(members, key=lambda node: column[id(node)]):
            right = max(column[id(node)], right + 1 if right >= 0 else column[id(node)])
            column[id(node)] = right
            places[id(node)] = _Place(_MARGIN + right * (_BOX_W + _GAP_X), _MARGIN + row * (_BOX_H + _GAP_Y))
    left = min(place.x for place in places.values()) - _MARGIN
    return {key: _Place(place.x - left, place.y) for key, place in places.items()}


def _fan(node: Node, consumers: dict[int, list[Node]]) -> int:
    fan = 1
    following = consumers.get(id(node), [])
    while following:
        fan = max(fan, len(following))
        following = consumers.get(id(following[0]), [])
    return fan


def _fit(text: str, width: float, size: float, em: float = 0.58) -> str:
    # `em` is the width of an average glyph of a wide sans-serif face, in font sizes; bold ones take 0.66.
    most = max(4, int(width / (em * size)))
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, size: float, colour: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_FONT} font-size="{size}" fill="{colour}" {extra}>{escape(text)}</text>'


def _box(node: Node, place: _Place) -> str:
    fill, border, ink = _COLOURS[_GROUPS.get(node.kind, "structure")]
    dash = ' stroke-dasharray="5 3"' if node.host_only else ""
    detail = node.detail()
    name, how = node.name, node.kind
    if node.kind.startswith("gather") and "." in name:
        name, _, how = name.rpartition(".")
    parts = [f"<g><title>{escape(f'{node.name} ({node.kind}) {detail}: {counts_text(node)}')}</title>"]
    offsets = (8, 4, 0) if node.kind.startswith("gather") else (0,)
    parts.extend(
        f'<rect x="{place.x + offset:.1f}" y="{place.y - offset:.1f}" width="{_BOX_W}" height="{_BOX_H}" rx="8" '
        f'fill="{fill}" stroke="{border}" stroke-width="1.4"{dash}/>'
        for offset in offsets
    )
    left = place.x + 12
    inner = _BOX_W - 24
    parts.append(_text(left, place.y + 20, _fit(name, inner, 13.5, 0.66), 13.5, ink, 'font-weight="600"'))
    second = how + (f" · {detail}" if detail else "")
    parts.append(_text(left, place.y + 36, _fit(second, inner, 11), 11, "#5b6676"))
    if node.items_out:
        count = f"{node.items_out:,} item{'s' * (node.items_out != 1)}"
        third = f"{count} · {format_rate(rate(node))}/s · {format_seconds(node.seconds)}"
    else:
        third = "no items yet"
    parts.append(_text(left, place.y + 52, _fit(third, inner, 11), 11, ink))
    parts.append("</g>")
    return "".join(parts)


def _arrow(child: Node, node: Node, start: _Place, end: _Place) -> str:
    x0, y0 = start.x + _BOX_W / 2, start.y + _BOX_H
    x1, y1 = end.x + _BOX_W / 2, end.y - (10 if node.kind.startswith("gather") else 2)
    middle = (y0 + y1) / 2
    if abs(x0 - x1) < 0.5:
        path = f"M{x0:.1f} {y0:.1f} L{x1:.1f} {y1:.1f}"
    elif y1 - y0 > _BOX_H + _GAP_Y:
        # Past a whole row: straight down in the own column, and across only in the last gap.
        turn = y1 - _GAP_Y
        path = (
            f"M{x0:.1f} {y0:.1f} L{x0:.1f} {turn:.1f} C{x0:.1f} {turn + _GAP_Y / 2:.1f} "
            f"{x1:.1f} {turn + _GAP_Y / 2:.1f} {x1:.1f} {y1:.1f}"
        )
    else:
        path = f"M{x0:.1f} {y0:.1f} C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    line = f'<path d="{path}" fill="none" stroke="#64748b" stroke-width="1.5" marker-end="url(#jaxrl-arrow)"/>'
    if not child.items_out or child.kind == "duplicate":
        return line
    # Beside the arrow, on the side that it does not bend to.
    straight = abs(x0 - x1) < 0.5
    near = x0 + (7 if straight or x1 < x0 else -7)
    anchor = "start" if straight or x1 < x0 else "end"
    return line + _text(near, y0 + 16, f"{child.items_out:,}", 10.5, "#5b6676", f'text-anchor="{anchor}" {_HALO}')


def _legend(width: float, height: float) -> str:
    y = height - _MARGIN + 4
    parts = [f'<line x1="{_MARGIN}" y1="{y - 22:.1f}" x2="{width - _MARGIN:.1f}" y2="{y - 22:.1f}" stroke="#e2e8f0"/>']
    x = float(_MARGIN)
    for group, label in _LEGEND:
        fill, border, _ = _COLOURS[group]
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="13" height="13" rx="3" fill="{fill}" stroke="{border}"/>'
        )
        parts.append(_text(x + 19, y + 1, label, 11, "#5b6676"))
        x += 34 + 6.2 * len(label)
    parts.append(
        f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="13" height="13" rx="3" fill="#ffffff" stroke="#5b6676" '
        'stroke-dasharray="3 2"/>'
    )
    parts.append(_text(x + 19, y + 1, "host only (workers, queues, clocks)", 11, "#5b6676"))
    return "".join(parts)
