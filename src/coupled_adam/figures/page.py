"""How a live figure becomes a piece of a page: one division, its style and its script."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from coupled_adam.palette import coloured, css

_SCRIPTS = {
    "cloud": ("common.js", "model.js", "cloud.js"),
    "explore": ("common.js", "explore.js"),
    "moments": ("common.js", "axes.js", "moments.js"),
    "step_size": ("common.js", "axes.js", "step_size.js"),
    "toy_updates": ("common.js", "model.js", "toy_updates.js"),
}
# Matplotlib's markers as the small mark before an arm's name; any other is a square.
_SHAPES = {"o": "border-radius: 50%", "D": "transform: rotate(45deg)"}


def piece(kind: str, config: dict[str, Any], alt: str, inside: str = "") -> str:
    """One self-contained piece of HTML: it loads nothing and leaves no names behind.

    It holds no ids, so that it may stand on a page any number of times; the script builds whichever
    figures of its kind are not built yet.

    Args:
        kind: which figure it is.
        config: what its script is given; plain values only.
        alt: text alternative of the whole figure.
        inside: HTML that is there before the script runs, and stays where none does; the text
            alternative if it is empty.
    """
    given = html.escape(json.dumps(config), quote=True)
    alt = html.escape(alt, quote=True)
    return (
        f'<div class="live-figure {kind}" data-figure="{kind}" data-config="{given}"'
        f' role="figure" aria-label="{alt}">{inside or f"<noscript>{alt}</noscript>"}</div>\n'
        f"<style>{style()}</style>\n<script>{script(kind)}</script>"
    )


@cache
def style() -> str:
    """The style of all live figures, with the colours of all arms."""
    arms = [f".live-figure {{ {css()} }}", f".live-figure.dark {{ {css(dark=True)} }}"]
    for arm in coloured():
        arms.append(f".live-figure .{arm.name} {{ --ink: var(--{arm.name}); }}")
        arms.append(f".live-figure .{arm.name} > .name::before {{ {_MARK} }}")
        if arm.marker in _SHAPES:
            shape = _SHAPES[arm.marker]
            arms.append(f".live-figure .{arm.name} > .name::before {{ {shape}; }}")
    # Blanks before a colon stay: ".a :is(.b)" is not ".a:is(.b)".
    return re.sub(
        r"\s*([{};,>])\s*|(?<=:)\s+", r"\1", "\n".join(arms) + "\n" + source("figures.css")
    )


_MARK = (
    'content: ""; display: inline-block; width: 0.7em; height: 0.7em; margin-right: 0.35em; '
    "background: var(--ink);"
)


@cache
def script(kind: str) -> str:
    """The script of one kind of figure, in a scope of its own, with the look of all arms."""
    names = json.dumps({arm.name: arm.label for arm in coloured()}, ensure_ascii=False)
    markers = json.dumps({arm.name: arm.marker for arm in coloured()})
    arms = f"const NAMES = {names};\nconst MARKERS = {markers};"
    body = "\n".join([arms, *map(source, _SCRIPTS[kind])])
    # A closing tag inside a string would end the script for the browser.
    return f'(() => {{\n"use strict";\n{body}\n}})();'.replace("</script", "<\\/script")


def source(name: str) -> str:
    """A script or style without its comment lines and indentation, which readers need not load."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))
