"""The ratios of an advantage benchmark as a picture: a dot for a median on a logarithmic axis, a line for its range."""

import math
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, LINE, TOP = 860, 270, 90, 22, 64
OURS, THEIRS, INK, SOFT, GRID = "#3b6fe0", "#a85b00", "#1c2024", "#5a636c", "#d9dee3"


def ratio_plot(result: dict[str, Any]) -> str:
    """An SVG of each scheme's and peer's time over the time of a copy of the same bytes.

    Args:
        result: What `bench_advantages` gives.

    Returns:
        The picture's text. Each dot says its numbers when it is pointed at.
    """
    lines: list[tuple[str, str, dict[str, float] | None]] = []  # label, color, numbers; a heading has none
    before = None
    for block in result["blocks"]:
        where = f"{block['case']}, {block['rows']} x {block['width']}, groups of {block['group']}, {block['layout']}"
        if where != before:
            lines.append((where, INK, None))
        before = where
        lines.append((block["scheme"], OURS, block["ratio"]["call"]))
        lines += [(one["peer"], THEIRS, one["ratio"]) for one in block["peers"]]
    drawn = [numbers for _, _, numbers in lines if numbers is not None]
    low = min([0.5, *(one["least"] for one in drawn)])
    high = max([4.0, *(one["greatest"] for one in drawn)])
    height = TOP + LINE * len(lines) + 40

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    said = f"{result['dtype']}, {result['threads'][0]} thread, {result['device']}, {result['clock']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>Time of the advantage stage over the time of a copy of its bytes</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(16, 24, "Time over that of a copy of the same bytes", INK, weight=600, size=15),
        _text(16, 43, f"median, least and greatest of rounds in turns; {said}", SOFT),
    ]
    bottom = TOP + LINE * len(lines) + 4
    for tick in _ticks(low, high):
        heavy = ' stroke-width="2"' if tick == 1 else ""
        color = SOFT if tick == 1 else GRID
        at = f'x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 6}" y2="{bottom}"'
        parts += [
            f'<line {at} stroke="{color}"{heavy}/>',
            _text(x(tick), bottom + 18, "1: a copy" if tick == 1 else f"{tick:g}", SOFT, "middle"),
        ]
    for number, (label, color, numbers) in enumerate(lines):
        y = TOP + LINE * number + LINE / 2
        if numbers is None:
            parts.append(_text(16, y + 4, label, INK, weight=600, backed=True))
            continue
        parts.append(_text(LEFT - 14, y + 4, label, color, "end"))
        parts.append(_dot(x, y, label, color, numbers))
    return "\n".join([*parts, "</svg>", ""])


def _dot(x: Any, y: float, label: str, color: str, numbers: dict[str, float]) -> str:
    least, median, greatest = (numbers[name] for name in ("least", "median", "greatest"))
    told = f"{label}: {median:.2f} ({least:.2f} to {greatest:.2f})"
    return (
        f'<g stroke="{color}"><title>{escape(told)}</title>'
        f'<line x1="{x(least):.1f}" x2="{x(greatest):.1f}" y1="{y}" y2="{y}" stroke-width="2"/>'
        f'<circle cx="{x(median):.1f}" cy="{y}" r="5" fill="{color if color == OURS else "#fff"}" stroke-width="2"/>'
        f"</g>{_text(x(greatest) + 10, y + 4, f'{median:.3g}', INK)}"
    )


def _text(
    x: float, y: float, words: str, color: str, anchor: str = "start", *, weight: int = 400, size: int = 13,
    backed: bool = False,
) -> str:  # fmt: skip
    halo = ' stroke="#fff" stroke-width="5" paint-order="stroke"' if backed else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}"{halo}>{escape(words)}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers of ten alone over three decades and more."""
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
