"""Pictures of a document: specifications in Vega-Lite, drawn as SVG that takes its colours from the page.

Data stand in the specification as values. No expression and no address is ever made of them, and the renderer is
given no address that it may fetch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_convert.errors import UnsupportedError
from gptoss_convert.report import wording
from gptoss_convert.report.document import Artifact, Comparison, Document, Footprint, LayerError, Logits
from gptoss_convert.verify.layers import GROUPS
from gptoss_convert.verify.parts import IN_WORDS, TOTAL

VERSION = "6.4"
"""Of Vega-Lite."""
WIDTH = 860
FONT_SIZE = 14
"""Of which texts are placed; the page shows them in 12, since its fonts may be wider than those of the renderer."""
ROW_HEIGHT = 26
COLOURS = tuple(f"var(--c{number})" for number in range(1, 11))
_INSTALL = "install it with: pip install 'gptoss-convert[report]'"

_AXIS = {
    "domainColor": "var(--line)",
    "gridColor": "var(--grid)",
    "tickColor": "var(--line)",
    "labelColor": "var(--text)",
    "titleColor": "var(--text)",
    "labelFontSize": FONT_SIZE,
    "titleFontSize": FONT_SIZE,
    "titleFontWeight": "normal",
    "labelLimit": 260,
}
_CONFIG = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "legend": {
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
        "labelLimit": 300,
        "orient": "bottom",
        "columns": 3,
        "columnPadding": 24,
        "rowPadding": 4,
    },
    "header": {"labelColor": "var(--text)", "titleColor": "var(--text)", "labelFontSize": FONT_SIZE},
}
_TITLE = {"anchor": "start", "frame": "group", "color": "var(--text)", "fontSize": FONT_SIZE, "limit": WIDTH * 0.75}
_LOG_AXIS = {"format": ".0e", "title": "KL divergence, nats", "tickCount": 10, "labelOverlap": "greedy"}


def require_renderer() -> None:
    """Raise `UnsupportedError` if the library that draws is not installed."""
    try:
        import vl_convert  # noqa: F401
    except ImportError:
        raise UnsupportedError("pictures need vl-convert-python, which is not installed", hint=_INSTALL) from None


def draw(specification: dict[str, Any]) -> str:
    """Return the picture of a specification as an SVG element.

    Raises:
        UnsupportedError: the library is not installed.
    """
    require_renderer()
    import vl_convert

    return vl_convert.vegalite_to_svg(
        {"config": _CONFIG, **specification}, vl_version=VERSION, allowed_base_urls=[]
    )


def histogram(logits: Logits) -> dict[str, Any] | None:
    """Return how many positions have which divergence, a row for each part, on a logarithmic axis."""
    items = [item for item in logits.comparisons if item.spread.histogram]
    if not items:
        return None
    names = _names(items, logits)
    values = [
        {"part": name, "low": bin_.low, "high": bin_.high, "count": bin_.count}
        for name, item in zip(names, items, strict=True)
        for bin_ in item.spread.histogram
        if bin_.count
    ]
    means = [
        {"part": name, "mean": item.summary.divergence.mean.mean}
        for name, item in zip(names, items, strict=True)
        if item.summary.divergence is not None and (item.summary.divergence.mean.mean or 0) > 0
    ]
    x_scale = {"type": "log", "nice": False, "domain": _domain(items)}
    rows = []
    for number, (name, item) in enumerate(zip(names, items, strict=True)):
        colour = COLOURS[_parts_order(item) % len(COLOURS)]
        last = number == len(items) - 1
        x_axis = {**_LOG_AXIS, "labels": last, "title": _LOG_AXIS["title"] if last else None}
        rows.append(
            {
                "width": WIDTH,
                "height": 70,
                "title": {**_TITLE, "text": name, "offset": 4},
                "layer": [
                    {
                        "data": {"values": [value for value in values if value["part"] == name]},
                        "mark": {"type": "rect", "color": colour, "stroke": "var(--panel)", "strokeWidth": 1},
                        "encoding": {
                            "x": {"field": "low", "type": "quantitative", "scale": x_scale, "axis": x_axis},
                            "x2": {"field": "high"},
                            "y": {
                                "field": "count",
                                "type": "quantitative",
                                "axis": {"title": "positions", "tickCount": 3, "format": "d"},
                            },
                            "y2": {"datum": 0},
                        },
                    },
                    {
                        "data": {"values": [value for value in means if value["part"] == name]},
                        "mark": {"type": "rule", "color": "var(--text)", "strokeWidth": 2},
                        "encoding": {"x": {"field": "mean", "type": "quantitative"}},
                    },
                ],
            }
        )
    return {"vconcat": rows, "spacing": 12}


def _domain(items: Sequence[Comparison]) -> list[float]:
    bins = [bin_ for item in items for bin_ in item.spread.histogram]
    return [min(bin_.low for bin_ in bins), max(bin_.high for bin_ in bins)]


def percentiles(document: Document) -> dict[str, Any] | None:
    """Return percentiles of the divergence of everything together, a row for each artifact and runtime."""
    rows: list[dict[str, Any]] = []
    for name, item in _totals(document.artifacts):
        levels = {entry.level: entry.value for entry in item.spread.percentiles}
        least = min((value for value in levels.values() if value is not None and value > 0), default=None)
        if least is None:
            continue
        row = {f"p{level:g}": max(value or least, least) for level, value in levels.items()}
        rows.append({"name": name} | {key.replace(".", "_"): value for key, value in row.items()})
    if not rows:
        return None
    names = [row["name"] for row in rows]
    y = {
        "field": "name",
        "type": "nominal",
        "sort": names,
        "axis": {"title": None, "ticks": False, "domain": False},
    }
    x = {"type": "quantitative", "scale": {"type": "log", "nice": True}, "axis": _LOG_AXIS}

    def between(low: str, high: str, width: int, opacity: float) -> dict[str, Any]:
        return {
            "mark": {"type": "rule", "strokeWidth": width, "color": COLOURS[0], "opacity": opacity},
            "encoding": {"y": y, "x": {**x, "field": low}, "x2": {"field": high}},
        }

    def at(field: str, shape: str, size: int, label: str) -> dict[str, Any]:
        return {
            "mark": {"type": "point", "filled": True, "size": size, "opacity": 1},
            "encoding": {
                "y": y,
                "x": {**x, "field": field},
                "shape": {"datum": label, "scale": {"domain": list(_MARKS), "range": list(_MARKS.values())}},
                "color": {
                    "datum": label,
                    "scale": {"domain": list(_MARKS), "range": ["var(--text)", COLOURS[1], COLOURS[6]]},
                    "legend": {"title": None},
                },
            },
        }

    return {
        "data": {"values": rows},
        "width": WIDTH,
        "height": max(len(rows), 2) * ROW_HEIGHT,
        "layer": [
            between("p0_05", "p0_95", 2, 1.0),
            between("p0_25", "p0_75", 10, 0.55),
            at("p0_5", "stroke", 160, "median"),
            at("p0_99", "diamond", 70, "99 %"),
            at("p0_999", "triangle-up", 70, "99.9 %"),
        ],
    }


_MARKS = {"median": "circle", "99 %": "diamond", "99.9 %": "triangle-up"}


def agreement_by_position(logits: Logits) -> dict[str, Any] | None:
    """Return the share of the same first token by the distance from the beginning of a prompt."""
    items = [item for item in logits.comparisons if item.spread.by_position]
    if not items:
        return None
    names = _names(items, logits)
    stretches = sorted({(item.first, item.last) for part in items for item in part.spread.by_position})
    values: list[dict[str, Any]] = [
        {"part": name, "place": f"{one.first} to {one.last}", "share": one.same_top1}
        for name, item in zip(names, items, strict=True)
        for one in item.spread.by_position
    ]
    order = [f"{first} to {last}" for first, last in stretches]
    x = {
        "field": "place",
        "type": "ordinal",
        "sort": order,
        "axis": {"title": "position in the prompt", "labelAngle": 0},
    }
    return _lines(values, x, _share_axis("same top-1", [value["share"] for value in values]), "part", names, items)


def routing_by_layer(logits: Logits) -> dict[str, Any] | None:
    """Return the share of positions with the same experts, by layer; None if no runtime tells its experts."""
    items = [item for item in logits.comparisons if item.routing is not None and item.routing.layer_shares]
    if not items:
        return None
    names = _names(items, logits)
    values: list[dict[str, Any]] = [
        {"part": name, "layer": layer, "share": value}
        for name, item in zip(names, items, strict=True)
        for layer, value in enumerate((item.routing and item.routing.layer_shares) or ())
    ]
    x = {"field": "layer", "type": "ordinal", "axis": {"title": "layer", "labelAngle": 0, "labelOverlap": "greedy"}}
    shares = [value["share"] for value in values]
    return _lines(values, x, _share_axis("same experts", shares), "part", names, items)


def error_by_layer(artifact: Artifact) -> dict[str, Any] | None:
    """Return the largest relative error of weights by layer and group; None if no weight in a layer differs."""
    layers = [] if artifact.weights is None else artifact.weights.layers
    shown = [item for item in layers if item.layer is not None]
    groups = [group for group in GROUPS if any(item.group == group and item.relative_error for item in shown)]
    values = [_error_value(item) for item in shown if item.group in groups]
    if not values:
        return None
    x = {"field": "layer", "type": "ordinal", "axis": {"title": "layer", "labelAngle": 0, "labelOverlap": "greedy"}}
    y = {"field": "error", "type": "quantitative", "axis": {"title": "relative error", "format": "~g"}}
    return _line_chart(values, x, y, "group", groups, [COLOURS[GROUPS.index(group)] for group in groups])


def _error_value(item: LayerError) -> dict[str, Any]:
    return {"group": item.group, "layer": item.layer, "error": item.relative_error}


def hidden_error_by_layer(artifact: Artifact) -> dict[str, Any] | None:
    """Return how far the hidden state is off after each layer; None if the artifact was not searched."""
    errors = [] if artifact.bisection is None else artifact.bisection.hidden_errors
    values = [
        {"group": "hidden state", "layer": "embedding" if index == 0 else str(index - 1), "error": error}
        for index, error in enumerate(errors)
        if error is not None
    ]
    if not any(value["error"] for value in values):
        return None
    order = [value["layer"] for value in values]
    x = {"field": "layer", "type": "ordinal", "sort": order, "axis": {"title": "after layer", "labelAngle": 0}}
    y = {"field": "error", "type": "quantitative", "axis": {"title": "relative error", "format": "~g"}}
    return _line_chart(values, x, y, "group", ["hidden state"], [COLOURS[0]])


def memory(items: Sequence[Footprint]) -> dict[str, Any] | None:
    """Return predicted bytes stacked by role, measured bytes beside them by phase, and the budget as a line."""
    if not items:
        return None
    roles = list(dict.fromkeys(role for item in items for role in item.predicted))
    kinds = list(dict.fromkeys(kind for item in items for kind, _ in _measured_parts(item)))
    colours = [_ROLES[number % len(_ROLES)] for number in range(len(roles))] + [_MEASURED[kind] for kind in kinds]
    charts = [_footprint(item, [*roles, *kinds], colours, max(map(_most, items))) for item in items]
    return {"vconcat": charts, "spacing": 24, "resolve": {"scale": {"color": "shared"}}}


_ROLES = (*COLOURS[:7], COLOURS[9])
_RESIDENT, _ANONYMOUS, _FILE_BACKED = "measured", "measured, anonymous", "measured, mapped files"
_MEASURED = {_RESIDENT: COLOURS[7], _ANONYMOUS: COLOURS[7], _FILE_BACKED: COLOURS[8]}


def _measured_parts(item: Footprint) -> Iterable[tuple[str, tuple[str, int]]]:
    """Yield kind, and phase and bytes, of what was measured."""
    for name, phase in (item.measured or {}).items():
        if phase.anonymous is None or phase.file_backed is None:
            yield _RESIDENT, (name, phase.resident)
        else:
            yield _ANONYMOUS, (name, phase.anonymous)
            yield _FILE_BACKED, (name, phase.file_backed)


def _most(item: Footprint) -> int:
    return max(item.total, item.peak or 0, item.budget or 0)


def _footprint(item: Footprint, kinds: Sequence[str], colours: Sequence[str], most: int) -> dict[str, Any]:
    values: list[dict[str, Any]] = [
        {"row": "predicted", "kind": role, "bytes": count, "order": order}
        for order, (role, count) in enumerate(item.predicted.items())
    ]
    values += [
        {"row": f"measured: {phase}", "kind": kind, "bytes": count, "order": order}
        for order, (kind, (phase, count)) in enumerate(_measured_parts(item))
    ]
    rows = list(dict.fromkeys(value["row"] for value in values))
    factor, unit = (1e9, "GB") if most >= 1e9 else (1e6, "MB")
    for value in values:
        value["size"] = value["bytes"] / factor
    x = {
        "field": "size",
        "type": "quantitative",
        "stack": "zero",
        "scale": {"domain": [0, most / factor * 1.02]},
        "axis": {"title": unit, "format": "~g", "tickCount": 8},
    }
    y = {"field": "row", "type": "nominal", "sort": rows, "axis": {"title": None, "ticks": False}}
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": values},
            "mark": {"type": "bar", "stroke": "var(--page)", "strokeWidth": 1},
            "encoding": {
                "x": x,
                "y": y,
                "order": {"field": "order"},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {"domain": list(kinds), "range": list(colours)},
                    "legend": {"title": None, "columns": 3},
                },
            },
        }
    ]
    if item.budget is not None:
        budget = [{"size": item.budget / factor, "label": f"budget {wording.size(item.budget)}"}]
        at = {"field": "size", "type": "quantitative"}
        layers.append(  # so that the line can be told from bars of any colour
            {
                "data": {"values": budget},
                "mark": {"type": "rule", "color": "var(--panel)", "strokeWidth": 6},
                "encoding": {"x": at},
            }
        )
        layers.append(
            {
                "data": {"values": budget},
                "mark": {"type": "rule", "color": "var(--fail)", "strokeWidth": 2, "strokeDash": [6, 3]},
                "encoding": {"x": at},
            }
        )
        layers.append(
            {
                "data": {"values": budget},
                "mark": {
                    "type": "text",
                    "color": "var(--fail)",
                    "align": "right",
                    "dx": -4,
                    "y": -7,
                    "fontSize": FONT_SIZE,
                },
                "encoding": {"x": at, "text": {"field": "label"}},
            }
        )
    return {
        "title": {**_TITLE, "text": f"{item.artifact} in {item.runtime}", "offset": 16},
        "width": WIDTH,
        "height": len(rows) * ROW_HEIGHT,
        "layer": layers,
    }


def _totals(artifacts: Iterable[Artifact]) -> Iterable[tuple[str, Comparison]]:
    for artifact in artifacts:
        for logits in artifact.logits:
            comparison = logits.comparison(TOTAL)
            if comparison is not None:
                name = artifact.path.rstrip("/").rpartition("/")[2]
                yield f"{name} in {logits.runtime}", comparison


def _names(items: Sequence[Comparison], logits: Logits) -> list[str]:
    return [wording.part(item, logits.runtime) for item in items]


def _parts_order(item: Comparison) -> int:
    return list(IN_WORDS).index(item.part) if item.part in IN_WORDS else len(IN_WORDS)


def _share_axis(title: str, shares: Sequence[float]) -> dict[str, Any]:
    least = min([*shares, 0.99])
    return {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [least, 1], "nice": True, "zero": False},
        "axis": {"title": title, "format": ".1~%", "tickCount": 5},
    }


def _lines(
    values: list[dict[str, Any]],
    x: dict[str, Any],
    y: dict[str, Any],
    field: str,
    names: Sequence[str],
    items: Sequence[Comparison],
) -> dict[str, Any]:
    return _line_chart(values, x, y, field, names, [COLOURS[_parts_order(item)] for item in items])


def _line_chart(
    values: list[dict[str, Any]],
    x: dict[str, Any],
    y: dict[str, Any],
    field: str,
    names: Sequence[str],
    colours: Sequence[str],
) -> dict[str, Any]:
    """Return lines told apart by colour and by the shape of their points."""
    legend = {"title": None} if len(names) > 1 else None
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
    series = {"field": field, "type": "nominal", "legend": legend}
    colour = {**series, "scale": {"domain": list(names), "range": list(colours)}}
    shape = {**series, "scale": {"domain": list(names), "range": shapes[: len(names)]}}
    return {
        "data": {"values": values},
        "width": WIDTH,
        "height": 170,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape},
            },
        ],
    }
