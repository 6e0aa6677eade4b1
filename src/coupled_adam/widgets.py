"""Knobs on any Python function: real controls with a kernel, a table of its values without one.

This is the one place of ipywidgets, and they are imported only when there is somebody to turn the
knobs: a page, a test or a notebook that is executed as a whole needs none.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import inspect
import io
import itertools
import math
import numbers
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_adam.errors import RefusedError
from coupled_adam.extras import needs
from coupled_adam.figures.page import piece

__all__ = ["Exploration", "explore"]

MOST_SETTINGS = 60
MOST_KILOBYTES = 800
_COLOURS = 63
_COLUMNS = 78  # of words in a picture of words


def explore(function: Callable[..., Any], /, **knobs: Any) -> Exploration:
    """Let the reader turn the knobs of a function, wherever the notebook is read.

    The function is called once for each setting of the knobs, and the results are kept in the
    output: a page, or a notebook opened without a kernel, shows them under the same knobs. Where a
    kernel runs and somebody sits before it, real controls take their place, which call the function
    with any value between the ends.

    Args:
        function: takes the knobs as keyword arguments. It returns a matplotlib Figure, a number, a
            string, a table (anything that pandas or others show as HTML), or a pair of one of these
            and a sentence, which is shown below it and is its text alternative. The first line of
            its docstring says what the whole is.
        knobs: for each argument a list of its values; or ``(low, high, step)``, both ends
            included; or ``True`` or ``False`` for a switch that stands so at first. A knob begins
            at the function's own default if that is among its values, else at the first one.

    Returns:
        An object that shows itself as the last value of a cell.

    Raises:
        RefusedError: if a knob has no values, or odd ones; if the function does not take the knobs;
            if there are more than 60 settings, or their results take more than 800 kB; if a result
            is of no kind that can be shown.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(function):
        raise RefusedError(f"explore() was given {function!r}; it needs a function to call")
    if not knobs:
        raise RefusedError(
            f"explore({name}) has no knobs: give each a name and values, such as rate=[0.1, 0.2]"
        )
    defaults = _defaults(function, name, knobs)
    made = tuple(_knob(key, given, defaults.get(key)) for key, given in knobs.items())
    settings = math.prod(len(knob.values) for knob in made)
    if settings > MOST_SETTINGS:
        sizes = " x ".join(f"{knob.name} ({len(knob.values)})" for knob in made)
        raise RefusedError(
            f"{sizes} makes {settings} settings; a page carries the results of at most "
            f"{MOST_SETTINGS}: give fewer values"
        )
    results = {
        values: _call(function, made, values)
        for values in itertools.product(*(knob.values for knob in made))
    }
    about = (inspect.getdoc(function) or name.replace("_", " ")).splitlines()[0]
    explored = Exploration(function, made, results, about)
    kilobytes = len(explored.html()) // 1000
    if kilobytes > MOST_KILOBYTES:
        raise RefusedError(
            f"the results of explore({name}) take {kilobytes} kB; a page carries at most "
            f"{MOST_KILOBYTES}: draw a smaller figure or fewer points, or give fewer values"
        )
    return explored


class _Knob(NamedTuple):
    """One argument: its name, its values, which comes first, and whether they are in order."""

    name: str
    values: tuple[Any, ...]
    start: int
    control: str  # "slider", "list" or "switch"

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")


class _Picture(NamedTuple):
    """The colours of an opaque picture, three bytes a pixel."""

    width: int
    height: int
    colours: bytes

    def array(self) -> NDArray[np.uint8]:
        """Shape [height, width, 3]."""
        return np.frombuffer(self.colours, np.uint8).reshape(self.height, self.width, 3)


class _Result(NamedTuple):
    """What one call came to: as words, as HTML, and before that as a picture if it is one."""

    words: str
    html: str
    picture: _Picture | None = None

    def shown(self, over: _Picture | None = None) -> str:
        """All of it as HTML; the picture perhaps as what differs from another one."""
        if self.picture is None:
            return self.html
        if over is not None and over[:2] != self.picture[:2]:
            over = None
        png = base64.b64encode(_compressed(self.picture, over)).decode()
        return (
            f'<img src="data:image/png;base64,{png}" alt="{html.escape(self.words, quote=True)}"'
            f' width="{self.picture.width}" height="{self.picture.height}"'
            f"{' data-over' if over else ''}>{self.html}"
        )


@dataclass(frozen=True)
class Exploration:
    """A function with its knobs and its results; made by :func:`explore`.

    Attributes:
        function: what is called.
        knobs: name, values and start of each.
        results: what is shown for each setting, by the tuple of the knobs' values.
        about: what the whole is, in one line.
    """

    function: Callable[..., Any]
    knobs: tuple[_Knob, ...]
    results: dict[tuple[Any, ...], _Result]
    about: str

    def html(self) -> str:
        """The knobs over the table of results, as one self-contained piece of HTML."""
        states, inside = self._table
        config = {
            "knobs": [
                {
                    "label": knob.label,
                    "values": [_say(value) for value in knob.values],
                    "start": knob.start,
                    "control": knob.control,
                }
                for knob in self.knobs
            ],
            "states": states,
            "token": self._token(),
        }
        return piece("explore", config, self.about, inside)

    def png(self) -> bytes:
        """The first setting's result as an opaque picture."""
        picture = self.results[self._start()].picture
        return _compressed(picture or _picture_of_words(self._words(self._start())))

    def text(self) -> str:
        """What the whole is, and a line for each setting."""
        return "\n".join([self.about, *map(self._words, self.results)])

    def controls(self) -> Any:
        """The same knobs as ipywidgets, which call the function when they are turned.

        Returns:
            A ``VBox``: the controls in a box, in the order of the knobs, and the result below them.
        """
        with needs("book"):
            import ipywidgets

        shown = ipywidgets.HTML(value=self.results[self._start()].shown())
        made = {knob.name: _control(ipywidgets, knob) for knob in self.knobs}

        def turn(_: Any) -> None:
            values = tuple(control.value for control in made.values())
            try:
                result = self.results.get(values) or _call(self.function, self.knobs, values)
                shown.value = result.shown()
            except Exception as error:  # here it would end up in a log that nobody reads
                shown.value = f"<p>{html.escape(f'{type(error).__name__}: {error}')}</p>"

        for control in made.values():
            control.observe(turn, names="value")
        flow = ipywidgets.Layout(display="flex", flex_flow="row wrap")
        box = ipywidgets.VBox([ipywidgets.Box(list(made.values()), layout=flow), shown])
        return box.add_class(self._token())

    def _start(self) -> tuple[Any, ...]:
        return tuple(knob.values[knob.start] for knob in self.knobs)

    def _words(self, values: tuple[Any, ...]) -> str:
        return f"{_setting(self.knobs, values)}: {self.results[values].words}"

    @cached_property
    def _table(self) -> tuple[list[int], str]:
        """Which state belongs to each setting, and the states in HTML, each once."""
        first = self.results[self._start()]
        # The first to be seen stands first, so that the others can be drawn over it.
        places = {first: 0}
        states = [places.setdefault(result, len(places)) for result in self.results.values()]
        inside = [f'<div class="state">{first.shown()}</div>']
        for result in list(places)[1:]:
            # Axes, labels and contours are the same in all pictures as a rule: drawing them once
            # makes chapter 02's page of 27 settings a fifth as heavy.
            shown = result.shown(over=first.picture)
            inside.append(f'<div class="state" hidden>{shown}</div>')
        return states, "".join(inside)

    def _token(self) -> str:
        """A class that the controls have and that the table's script looks for."""
        shown = repr((self.knobs, self._table))
        return "explore-" + hashlib.sha256(shown.encode()).hexdigest()[:12]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.text(),
        }

    def _ipython_display_(self) -> None:
        # Two outputs, not one: in a single one the widget would be preferred for ever, and a
        # notebook opened again without its kernel would show "model not found" instead of the
        # table. The table's script hides whichever of the two is not wanted.
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)
        if _somebody_is_there() and importlib.util.find_spec("ipywidgets"):
            view = {"version_major": 2, "version_minor": 0, "model_id": self.controls().model_id}
            widget = {"application/vnd.jupyter.widget-view+json": view, "text/plain": ""}
            display(widget, raw=True)


def _somebody_is_there() -> bool:
    """Whether a kernel runs this cell for a reader, not for a program that executes notebooks.

    Such programs say in their request that nobody can answer a question (``allow_stdin``); then
    nobody can turn a knob either, and the output must not depend on widgets.
    """
    if "google.colab" in sys.modules:
        return True
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    if kernel is None:
        return False
    request = kernel.get_parent("shell") or {}
    return bool(request.get("content", {}).get("allow_stdin"))


def _defaults(function: Callable[..., Any], name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The function's own defaults of its arguments, after a look whether it takes the knobs."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return {}
    try:
        signature.bind(**knobs)
    except TypeError as error:
        raise RefusedError(
            f"explore() calls {name}{signature} with {', '.join(f'{key}=...' for key in knobs)}: "
            f"{error}"
        ) from None
    return {key: one.default for key, one in signature.parameters.items()}


def _knob(name: str, given: Any, default: Any) -> _Knob:
    """One knob from what the caller gave for it."""
    if isinstance(given, bool | np.bool_):
        return _Knob(name, (False, True), int(given), "switch")
    if isinstance(given, tuple):
        values = _steps(name, given)
    elif isinstance(given, Sequence | np.ndarray) and not isinstance(given, str | bytes):
        if len(given) > MOST_SETTINGS:
            raise RefusedError(
                f"{name} has {len(given)} values; a page carries the results of at most "
                f"{MOST_SETTINGS} settings: give fewer"
            )
        values = [_value(name, value) for value in given]
    else:
        raise RefusedError(
            f"{name} is {given!r}; a knob is a list of values, (low, high, step), True or False"
        )
    if len(values) < 2:
        count = "no values" if not values else "only one value"
        raise RefusedError(f"{name} has {count}; a knob needs at least two to choose from")
    if len(set(values)) < len(values):  # True and 1 are one value to Python
        raise RefusedError(f"{name} has a value twice: {', '.join(map(_say, values))}")
    ordered = all(map(_is_number, values)) and all(a < b for a, b in itertools.pairwise(values))
    start = next((k for k, value in enumerate(values) if _same(value, default)), 0)
    return _Knob(name, tuple(values), start, "slider" if ordered else "list")


def _steps(name: str, given: tuple[Any, ...]) -> list[Any]:
    """The values of ``(low, high, step)``, both ends included."""
    if len(given) != 3 or not all(_is_number(value) for value in given):
        raise RefusedError(
            f"{name} is {given!r}; a tuple means (low, high, step): for these values and no others "
            "give a list"
        )
    low, high, step = (_value(name, value) for value in given)
    if not (step > 0 and high > low):
        raise RefusedError(
            f"{name} is {given!r}; in (low, high, step) low is below high and step above zero"
        )
    count = math.floor((high - low) / step + 1e-9) + 1
    if count > MOST_SETTINGS:
        raise RefusedError(
            f"{name} is {given!r}, which makes {count} values; a page carries the results of at "
            f"most {MOST_SETTINGS} settings: give a larger step"
        )
    whole = all(isinstance(value, int) for value in (low, high, step))
    # Twelve digits: 0.1 + 2 * 0.1 is to be 0.3.
    return [low + k * step if whole else float(f"{low + k * step:.12g}") for k in range(count)]


def _value(name: str, value: Any) -> Any:
    """A knob's value as plain Python has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, str | bool | int | float):
        raise RefusedError(
            f"{name} has a value of type {type(value).__name__}; a knob's values are numbers, "
            "words, True, False or None"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{name} has the value {value}; a knob's numbers are finite")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _same(value: Any, default: Any) -> bool:
    """Whether a value is a function's default; defaults may be arrays, with an equality of theirs.

    True and 1 are two values here.
    """
    plain = isinstance(default, str | bool | int | float | None)
    return plain and value == default and isinstance(value, bool) == isinstance(default, bool)


def _say(value: Any) -> str:
    """A knob's value in words, short if that loses nothing."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _setting(knobs: Sequence[_Knob], values: Sequence[Any]) -> str:
    return ", ".join(f"{k.label} {_say(value)}" for k, value in zip(knobs, values, strict=True))


def _call(function: Callable[..., Any], knobs: Sequence[_Knob], values: Sequence[Any]) -> _Result:
    """Call the function for one setting; an error says at which."""
    try:
        result = function(**{knob.name: value for knob, value in zip(knobs, values, strict=True)})
        return _shown(result, _setting(knobs, values))
    except Exception as error:
        error.add_note(f"explore() had set {_setting(knobs, values)}")
        raise


def _shown(result: Any, setting: str) -> _Result:
    """One result as words, HTML and perhaps a picture."""
    sentence = ""
    picture: _Picture | None
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, sentence = result
    figures = sys.modules.get("matplotlib.figure")  # not loaded: then it is no figure
    if figures is not None and isinstance(result, figures.Figure):
        picture, words, shown = _picture(result), setting, ""
    elif isinstance(result, str):
        picture, words, shown = None, result, f"<p>{html.escape(result)}</p>"
    elif isinstance(result, numbers.Real):
        whole = isinstance(result, numbers.Integral | np.bool_)
        words = str(result) if whole else f"{float(result):.6g}"
        picture, shown = None, f'<p class="value">{words}</p>'
    elif callable(getattr(result, "_repr_html_", None)):
        picture, words, shown = None, str(result), result._repr_html_()
    else:
        what = "nothing" if result is None else f"something of type {type(result).__name__}"
        raise RefusedError(
            f"the function returned {what}; explore() shows a matplotlib Figure (return it, do not "
            "show it), a number, a string, a table, or a pair of one of these and a sentence"
        )
    if sentence:
        shown += f'<p class="says">{html.escape(sentence)}</p>'
        # Below a table, not behind its last row.
        between = "\n" if "\n" in words else ". "
        words = sentence if picture else f"{words}{between}{sentence}"
    return _Result(words, shown, picture)


def _picture(figure: Any) -> _Picture:
    """A figure on white; closes it, since an open one would be shown below the cell."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)
    figure.patch.set(facecolor="white", alpha=1)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would draw it twice
    colours = np.asarray(canvas.buffer_rgba())[..., :3]
    return _Picture(colours.shape[1], colours.shape[0], colours.tobytes())


def _picture_of_words(words: str) -> _Picture:
    """Words as a picture, for places that show neither HTML nor text."""
    with needs("book"):
        from matplotlib.figure import Figure

    # What is wider than the picture would be cut off.
    lines = [part for line in words.splitlines() for part in textwrap.wrap(line, _COLUMNS) or [""]]
    words = "\n".join(lines)
    figure = Figure(figsize=(7, 0.4 + 0.25 * len(lines)), dpi=110)
    # Dollar signs are the function's own, not mathematics.
    figure.text(0.02, 0.5, words, va="center", family="monospace", size=10, parse_math=False)
    return _picture(figure)


def _compressed(picture: _Picture, over: _Picture | None = None) -> bytes:
    """A picture as a PNG of at most 63 colours.

    Args:
        picture: to be compressed.
        over: another one of the same size. The result is then transparent where the two are alike,
            to be laid over it.
    """
    with needs("book"):
        from PIL import Image

    colours, file = picture.array(), io.BytesIO()
    if over is None:
        few = Image.fromarray(colours).quantize(_COLOURS, dither=Image.Dither.NONE)
        few.save(file, format="png", optimize=True)
        return file.getvalue()
    alike = (colours == over.array()).all(axis=2)
    rest = Image.fromarray(np.where(alike[..., None], np.uint8(255), colours))
    few = rest.quantize(_COLOURS, dither=Image.Dither.NONE)
    palette = (few.getpalette() or [])[: 3 * _COLOURS]
    # One colour more, and that is none.
    laid = Image.fromarray(np.where(alike, np.uint8(_COLOURS), np.asarray(few)), mode="P")
    laid.putpalette(palette + [255] * (3 * (_COLOURS + 1) - len(palette)))
    laid.save(file, format="png", optimize=True, transparency=_COLOURS)
    return file.getvalue()


def _control(ipywidgets: Any, knob: _Knob) -> Any:
    """The ipywidget of one knob; a slider takes any value between the ends."""
    style = {"description_width": "initial"}
    common = {"description": knob.label, "style": style, "value": knob.values[knob.start]}
    if knob.control == "switch":
        return ipywidgets.Checkbox(**common, indent=False)
    if knob.control == "list":
        options = [(_say(value), value) for value in knob.values]
        return ipywidgets.Dropdown(**common, options=options)
    # Called when the knob is let go, since a call may take a while.
    common |= {"continuous_update": False, "layout": ipywidgets.Layout(min_width="20em")}
    low, high = knob.values[0], knob.values[-1]
    if all(isinstance(value, int) for value in knob.values):
        return ipywidgets.IntSlider(**common, min=low, max=high)
    common["readout_format"] = ".4g"
    gaps = np.diff(knob.values)
    if low > 0 and high / low >= 10 and not np.allclose(gaps, gaps[0]):
        ends = {"min": math.log10(low), "max": math.log10(high), "step": 0.01}
        return ipywidgets.FloatLogSlider(**common, **ends)
    return ipywidgets.FloatSlider(**common, min=low, max=high, step=float(gaps.min()) / 10)
