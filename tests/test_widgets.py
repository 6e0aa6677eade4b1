"""explore(): the table on the page, the controls in a kernel, and what cannot be explored."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from test_figures import PAGE, run_node

from coupled_adam.errors import RefusedError
from coupled_adam.extras import MissingExtraError
from coupled_adam.widgets import Exploration, explore

VIEW = "application/vnd.jupyter.widget-view+json"


def area(width=2, height=1.5, *, doubled=False, unit="cm"):
    """The area of a rectangle."""
    return f"{width * height * (2 if doubled else 1):.6g} {unit}²"


KNOBS: dict[str, Any] = {
    "width": (1, 3, 1),
    "height": [0.5, 1.5, 4],
    "doubled": True,
    "unit": ["cm", "<in>"],
}


def drawn(slope=1, colour="C0"):
    """A line through the origin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), dpi=100)
    panel = figure.add_subplot()
    panel.plot([0, 1], [0, slope], color=colour, linewidth=4)
    panel.set_ylim(-2, 2)
    return figure, f"The line ends at {slope}."


def settings(explored: Exploration) -> list[dict[str, Any]]:
    """All settings in the order of the table."""
    names = [knob.name for knob in explored.knobs]
    values = itertools.product(*(knob.values for knob in explored.knobs))
    return [dict(zip(names, one, strict=True)) for one in values]


def config_and_states(text: str) -> tuple[dict[str, Any], list[Any]]:
    """What the script is given, and the baked states, from a page or a piece of one."""
    root = BeautifulSoup(text, "html.parser").select_one(".live-figure.explore")
    return json.loads(root["data-config"]), root.select(".state")


# What is on the page


def test_the_page_carries_the_functions_value_for_every_setting() -> None:
    explored = explore(area, **KNOBS)
    config, states = config_and_states(explored.html())
    assert len(config["states"]) == 3 * 3 * 2 * 2
    for place, setting in zip(config["states"], settings(explored), strict=True):
        assert states[place].get_text() == area(**setting)
    assert len(states) == len({area(**one) for one in settings(explored)}), "one of each is enough"


def test_without_a_script_the_first_setting_is_seen_and_no_other() -> None:
    _, states = config_and_states(explore(area, **KNOBS).html())
    seen = [state for state in states if not state.has_attr("hidden")]
    assert [state.get_text() for state in seen] == [area(doubled=True)]


def test_a_knob_begins_at_the_functions_default_or_its_first_value() -> None:
    knobs = explore(area, width=[1, 2], height=[4, 5], unit=["m", "cm"], doubled=False).knobs
    assert [knob.values[knob.start] for knob in knobs] == [2, 4, "cm", False]
    # True is no 1, and an array has an equality of its own.
    assert explore(lambda n=True: n, n=[0, 1]).knobs[0].start == 0
    array = np.ones(2)
    assert explore(lambda n=array: str(n), n=[0, 1]).knobs[0].start == 0


@pytest.mark.parametrize(
    ("given", "values", "control"),
    [
        ((1, 3, 1), [1, 2, 3], "slider"),
        ((0.1, 0.5, 0.1), [0.1, 0.2, 0.3, 0.4, 0.5], "slider"),
        ((0, 1, 0.4), [0, 0.4, 0.8], "slider"),
        ((-1.5, 0, 0.5), [-1.5, -1, -0.5, 0], "slider"),
        (range(3), [0, 1, 2], "slider"),
        (np.array([0.5, 2]), [0.5, 2], "slider"),
        (np.arange(3), [0, 1, 2], "slider"),
        ([3, 1], [3, 1], "list"),
        (["b", "a", None], ["b", "a", None], "list"),
        ([True, False], [True, False], "list"),
        (True, [False, True], "switch"),
        (np.False_, [False, True], "switch"),
    ],
)
def test_knobs(given: Any, values: list[Any], control: str) -> None:
    (knob,) = explore(lambda x: str(x), x=given).knobs
    assert list(knob.values) == values
    assert knob.control == control
    assert {type(value).__module__ for value in knob.values} == {"builtins"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        (np.int64(3), "3"),
        (0.25, "0.25"),
        (np.float32(0.25), "0.25"),
        (1e-9, "1e-09"),
        (float("nan"), "nan"),
        (True, "True"),
        ("a < b", "a < b"),
        ((0.5, "half of it"), "0.5half of it"),
    ],
)
def test_what_is_shown_of_a_result(value: Any, words: str) -> None:
    _, states = config_and_states(explore(lambda x: value, x=[1, 2]).html())
    assert [state.get_text() for state in states] == [words]


def test_a_table_is_shown_as_a_table() -> None:
    pandas = pytest.importorskip("pandas")
    explored = explore(lambda n: pandas.DataFrame({"square": [n * n]}), n=[3, 7])
    _, states = config_and_states(explored.html())
    assert [state.select_one("table td").get_text() for state in states] == ["9", "49"]


def opened(image: Any) -> np.ndarray:
    """The pixels of a baked picture, red, green, blue and opacity in 0 to 1."""
    pictures = pytest.importorskip("PIL.Image")
    raw = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    return np.asarray(pictures.open(io.BytesIO(raw)).convert("RGBA")) / 255


def test_pictures_are_opaque_small_closed_and_have_words() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def with_pyplot(slope):
        figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=110)
        axes.plot(np.linspace(0, slope), color="#D55E00")
        axes.set_ylim(0, 4)
        figure.patch.set_alpha(0)
        return figure, f"The line ends at {slope}."

    before = pyplot.get_fignums()
    explored = explore(with_pyplot, slope=[1, 2, 3])
    assert pyplot.get_fignums() == before, "the figures would be shown a second time"
    _, states = config_and_states(explored.html())
    images = [state.select_one("img") for state in states]
    for slope, state, image in zip([1, 2, 3], states, images, strict=True):
        assert image["alt"] == state.select_one(".says").get_text() == f"The line ends at {slope}."
        assert (int(image["width"]), int(image["height"])) == (770, 396)
        # Of all but the first there is only what differs from the first.
        assert len(image["src"]) < 15_000 if slope == 1 else 4_000

    first, *others = map(opened, images)
    assert (first[..., 3] == 1).all()
    assert (first[0, 0] == 1).all()
    for pixels, result in zip(others, list(explored.results.values())[1:], strict=True):
        seen = np.where(pixels[..., 3:] == 1, pixels, first)[..., :3]
        assert np.abs(seen - result.picture.array() / 255).max() < 0.15


def test_pictures_of_different_sizes_are_whole() -> None:
    from matplotlib.figure import Figure

    explored = explore(lambda width: Figure(figsize=(width, 1)), width=[1, 2, 1.5])
    images = [state.select_one("img") for state in config_and_states(explored.html())[1]]
    assert [image["width"] for image in images] == ["100", "200", "150"]
    assert all((opened(image)[..., 3] == 1).all() for image in images)
    assert not any(image.has_attr("data-over") for image in images)


def test_a_picture_of_words_holds_all_of_them() -> None:
    # The control of chapter 12: a table, and a sentence that ran out of the picture on the right.
    table = pytest.importorskip("pandas").DataFrame
    imread = pytest.importorskip("matplotlib.image").imread

    def told(rows: int) -> tuple[Any, str]:
        "A table and a long sentence."
        return table({"loss": [5.25] * rows}), "It says this and that, many times. " * 6

    result = explore(told, rows=[4, 5])
    assert "5.25\nIt says" in result.text()
    dark = imread(io.BytesIO(result.png()))[..., :3].min(axis=-1) < 0.5
    (rows, columns), (height, width) = dark.nonzero(), dark.shape
    assert columns.max() < width - 5 and rows.min() > 3 and rows.max() < height - 3


def test_a_picture_without_a_sentence_says_its_setting() -> None:
    explored = explore(lambda slope: drawn(slope)[0], slope=[1, 2])
    images = [state.select_one("img") for state in config_and_states(explored.html())[1]]
    assert [image["alt"] for image in images] == ["slope 1", "slope 2"]


def test_the_output_is_the_same_each_time_and_loads_nothing() -> None:
    text = explore(drawn, slope=[1, 2], colour=["C0", "C1"]).html()
    assert explore(drawn, slope=[1, 2], colour=["C0", "C1"]).html() == text
    rest = re.sub(r' src="data:image/png;base64,[\w+/=]+"', "", text)
    # The one address in the script is that of the picture that is baked in.
    assert not re.search(r"https?:|//[a-z]|@import|\bhref=|url\((?!\$)|fetch\(|import\(", rest)
    assert not re.search(r"\bsrc=|\bid=", rest)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    run_node(script, "--check")


def test_words_cannot_end_the_script_or_the_attribute() -> None:
    evil = "</script><b>\"quoted\" & 'single'</div>"

    def shown(word):
        return word, evil

    shown.__doc__ = evil
    text = explore(shown, word=[evil, "x"]).html()
    config, states = config_and_states(text)
    assert text.count("</script") == 1
    assert config["knobs"][0]["values"] == [evil, "x"]
    assert states[0].get_text() == evil + evil


def test_the_bundle_holds_a_page_an_opaque_picture_and_words() -> None:
    imread = pytest.importorskip("matplotlib.image").imread
    for explored in (explore(drawn, slope=[1, 2]), explore(area, **KNOBS)):
        bundle = explored._repr_mimebundle_()
        assert bundle["text/html"] == explored.html()
        pixels = imread(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
        assert (pixels[..., :3].sum(axis=2) < 2).sum() > 200
        lines = bundle["text/plain"].splitlines()
        assert len(lines) == 1 + len(explored.results)
    assert bundle["text/plain"].startswith(
        "The area of a rectangle.\nwidth 1, height 0.5, doubled False, unit cm: 0.5 cm²\n"
    )


def test_without_matplotlib_the_page_is_there_and_the_picture_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    explored = explore(area, **KNOBS)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert area(doubled=True) in explored.html()
    with pytest.raises(MissingExtraError, match=r"needs matplotlib.*coupled-adam\[book\]"):
        explored.png()
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingExtraError, match=r"needs ipywidgets.*coupled-adam\[book\]"):
        explored.controls()


# The script, run under node on a stand-in for a page

VISIT = """
const picture = (alt) => ({ getAttribute: () => alt });
const states = STATES.map((s) => ({
  textContent: s.text, hidden: s.hidden, querySelector: () => s.alt && picture(s.alt),
}));
root.querySelectorAll = (wanted) => (wanted === ".state" ? states : []);
root.prepend = (child) => (root.children = [child, ...root.children.filter((c) => c !== child)]);
root.closest = () => null;
document.querySelector = () => null;
"""
TURN = """
const controls = all(root, "label").map((l) => [...all(l, "input"), ...all(l, "select")][0]);
const turned = SETTINGS.map((choice) => {
  choice.forEach((k, i) => {
    const c = controls[i];
    if (c.attributes.type === "checkbox") c.checked = k === 1;
    else c.value = k;
    (c.listeners.input || c.listeners.change)();
  });
  return { shown: states.flatMap((s, k) => (s.hidden ? [] : [k])), said: live()[0] };
});
const labels = all(root, "label").map(text);
console.log(JSON.stringify({ seen: turned, labels, first: root.children[0].attributes.class }));
"""


@pytest.mark.parametrize("explored", [explore(area, **KNOBS), explore(drawn, slope=[1, 2, -1])])
def test_the_script_shows_the_value_of_the_setting_and_says_it(explored: Exploration) -> None:
    text = explored.html()
    config, states = config_and_states(text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    baked = [
        {
            "text": state.get_text(),
            "hidden": state.has_attr("hidden"),
            "alt": state.img and state.img["alt"],
        }
        for state in states
    ]
    choices = list(itertools.product(*(range(len(knob.values)) for knob in explored.knobs)))
    visit = VISIT.replace("STATES", json.dumps(baked))
    turn = TURN.replace("SETTINGS", json.dumps(choices))
    page = PAGE.replace("CONFIG", json.dumps(json.dumps(config))).replace("STILL", "false")
    done = json.loads(run_node(page + visit + script + turn))
    assert done["first"] == "knobs"
    names = [knob.name for knob in explored.knobs]
    assert all(label.startswith(n) for label, n in zip(done["labels"], names, strict=True))
    for (values, result), seen in zip(explored.results.items(), done["seen"], strict=True):
        (place,) = seen["shown"]
        assert result.words in (baked[place]["text"], baked[place]["alt"])
        setting = dict(zip(names, values, strict=True))
        said = ", ".join(f"{name} {value}" for name, value in setting.items())
        assert seen["said"] == f"{said}: {result.words}"


# In a kernel


def messages(client: Any, code: str) -> list[dict[str, Any]]:
    """What a cell sends before the kernel is idle again; an error fails the test."""
    return until_idle(client, client.execute(code))


def until_idle(client: Any, request: str) -> list[dict[str, Any]]:
    got = []
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
        got.append(message)
        if message["content"].get("execution_state") == "idle":
            return got


@pytest.fixture(scope="module")
def kernel():
    """A client of a running kernel, as a front end with a reader before it has one."""
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


AREA = """
from coupled_adam.widgets import explore
def area(width=2, doubled=False):
    if width > 8: raise ValueError("too wide")
    return width * (2 if doubled else 1)
"""


def test_setting_a_knob_in_a_kernel_changes_the_result(kernel: Any) -> None:
    pytest.importorskip("ipywidgets")
    got = messages(kernel, AREA + "explore(area, width=[2, 4.5, 9][:2], doubled=False)")
    opened = {
        m["content"]["comm_id"]: m["content"]["data"]["state"]
        for m in got
        if m["msg_type"] == "comm_open"
    }
    named = {state["_model_name"]: key for key, state in opened.items()}
    table, live = (m["content"]["data"] for m in got if m["msg_type"] == "display_data")
    assert set(table) == {"text/html", "image/png", "text/plain"}
    assert live[VIEW]["model_id"] == named["VBoxModel"]
    assert opened[named["HTMLModel"]]["value"] == '<p class="value">2</p>'

    def turn(model: str, value: Any) -> str:
        content = {"data": {"method": "update", "state": {"value": value}, "buffer_paths": []}}
        message = kernel.session.msg("comm_msg", content | {"comm_id": named[model]})
        kernel.shell_channel.send(message)
        changed = [
            m["content"]["data"]["state"]["value"]
            for m in until_idle(kernel, message["header"]["msg_id"])
            if m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == named["HTMLModel"]
        ]
        return changed[-1]

    assert turn("FloatSliderModel", 4.5) == '<p class="value">4.5</p>'
    assert turn("CheckboxModel", True) == '<p class="value">9</p>'
    assert turn("FloatSliderModel", 3.125) == '<p class="value">6.25</p>', "not in the table"


def test_controls_in_python(kernel: Any) -> None:
    pytest.importorskip("ipywidgets")
    code = """
    explored = explore(lambda n, word, rate: f"{word} {n} {rate:.3g}",
                       n=[1, 10], word=["a", "b"], rate=[0.001, 0.01, 1])
    knobs, shown = explored.controls().children
    number, word, rate = knobs.children
    print(type(number).__name__, type(word).__name__, type(rate).__name__)
    number.value, word.value, rate.value = 7, "b", 0.05
    print(shown.value)
    """
    got = messages(kernel, AREA + textwrap.dedent(code))
    printed = "".join(m["content"]["text"] for m in got if m["msg_type"] == "stream")
    assert printed == "IntSlider Dropdown FloatLogSlider\n<p>b 7 0.05</p>\n"


def test_an_error_in_a_kernel_is_seen_where_the_result_was(kernel: Any) -> None:
    pytest.importorskip("ipywidgets")
    code = "knobs, shown = explore(area, width=[2, 8], doubled=True).controls().children\n"
    code += "knobs.children[0].max = 20; knobs.children[0].value = 9; print(shown.value)"
    got = messages(kernel, AREA + code)
    printed = "".join(m["content"]["text"] for m in got if m["msg_type"] == "stream")
    assert printed == "<p>ValueError: too wide</p>\n"


def test_a_notebook_executed_as_a_whole_has_the_table_and_needs_no_widgets(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    loaded = "import sys; print('ipywidgets' in sys.modules)"
    sources = [AREA + "explore(area, width=[2, 4], doubled=True)", loaded]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": tmp_path}}).execute()
    (table,) = notebook.cells[0].outputs
    assert set(table["data"]) == {"text/html", "image/png", "text/plain"}
    assert "widgets" not in notebook.metadata
    assert notebook.cells[1].outputs[0]["text"] == "False\n"


def test_without_ipywidgets_a_kernel_shows_the_table(kernel: Any) -> None:
    hide = """
    import importlib.util, sys
    real = importlib.util.find_spec
    hidden = {"ipywidgets"}
    importlib.util.find_spec = lambda name, *rest: None if name in hidden else real(name, *rest)
    """
    try:
        got = messages(kernel, textwrap.dedent(hide) + AREA + "explore(area, width=[2, 4])")
    finally:
        messages(kernel, "importlib.util.find_spec = real")
    shown = [m["content"]["data"] for m in got if m["msg_type"] == "display_data"]
    assert [set(data) for data in shown] == [{"text/html", "image/png", "text/plain"}]


# In a browser, from a file, without a network


def a_page(folder: Path, *pieces: str) -> Path:
    file = folder / "page.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    file.write_text(head + "<body>" + "".join(pieces), encoding="utf-8")
    return file


SEEN = (
    "[...document.querySelectorAll('.state')]"
    ".filter((s) => s.offsetHeight).map((s) => s.innerText.trim())"
)


def test_the_knobs_are_turned_with_the_keyboard(tab: Any, tmp_path: Path) -> None:
    explored = explore(area, **KNOBS)
    tab.open(a_page(tmp_path, explored.html()))
    now = {"width": 2, "height": 1.5, "doubled": True, "unit": "cm"}
    assert tab.value(SEEN) == [area(**now)]
    steps = [
        ("Tab", {}),
        ("ArrowRight", {"width": 3}),
        ("Home", {"width": 1}),
        ("Tab", {}),
        ("End", {"height": 4}),
        ("ArrowLeft", {"height": 1.5}),
        ("Tab", {}),
        (" ", {"doubled": False}),
        ("Tab", {}),
        ("ArrowDown", {"unit": "<in>"}),
    ]
    for key, change in steps:
        tab.press(key)
        now |= change
        assert tab.value(SEEN) == [area(**now)], key
        focused = tab.value("document.activeElement.closest('label').innerText")
        assert not change or next(iter(change)) in focused
    said = tab.value("document.querySelector('[aria-live]').textContent")
    assert said == f"width 1, height 1.5, doubled False, unit <in>: {area(**now)}"


def test_the_picture_that_is_seen_is_the_functions(tab: Any, tmp_path: Path) -> None:
    """On the screen: those after the first are drawn over it."""
    pictures = pytest.importorskip("PIL.Image")
    explored = explore(drawn, slope=[1, -1, 2], colour=["C0", "C3"])
    theme = "<style>html body div img { background: #888; padding: 8px; }</style>"
    tab.open(a_page(tmp_path, theme, explored.html()))
    for value, key in [(1, "Tab"), (-1, "ArrowRight"), (2, "ArrowRight"), (-1, "ArrowLeft")]:
        tab.press(key)
        place = tab.value("""(() => {
          const image = [...document.images].find((i) => i.offsetHeight);
          const { x, y, width, height } = image.getBoundingClientRect();
          return image.decode().then(() => ({ x, y, width, height, scale: 1 }));
        })()""")
        shot = tab.send("Page.captureScreenshot", clip=place)["data"]
        seen = np.asarray(pictures.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"), float)
        wanted = explored.results[value, "C0"].picture.array()
        assert seen.shape == wanted.shape
        # The corners are rounded; elsewhere the colours are a little fewer.
        assert np.abs(seen - wanted)[10:-10, 10:-10].max() < 40, value


@pytest.mark.parametrize("width", [390, 1280])
def test_every_control_of_every_figure_is_a_finger_high(
    tab: Any, tmp_path: Path, width: int
) -> None:
    from coupled_adam import figures

    pieces = [explore(area, **KNOBS).html(), explore(drawn, slope=[1, 2]).html()]
    pieces += [getattr(figures, name)().html() for name in figures.__all__ if name.islower()]
    tab.open(a_page(tmp_path, *pieces), width)
    heights = tab.value(
        "[...document.querySelectorAll('label, button, select, input[type=range]')]"
        ".map((c) => c.getBoundingClientRect().height)"
    )
    assert len(heights) > 20
    assert min(heights) >= 44
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")


def test_dark_pages_have_light_knobs(tab: Any, tmp_path: Path) -> None:
    style = "<style>body { color: #eee; background: #121212; }</style>"
    tab.open(a_page(tmp_path, style, explore(area, **KNOBS).html()), dark=True)
    assert tab.value("document.querySelector('.live-figure').classList.contains('dark')")
    ground = tab.value("getComputedStyle(document.querySelector('select')).backgroundColor")
    letters = tab.value("getComputedStyle(document.querySelector('select')).color")
    assert (ground, letters) == ("rgb(18, 18, 18)", "rgb(238, 238, 238)")


def test_the_table_gives_way_to_live_controls_and_comes_back(tab: Any, tmp_path: Path) -> None:
    """In JupyterLab: the parts of its page that the script looks at, put there and taken away."""
    explored = explore(area, **KNOBS)
    token = config_and_states(explored.html())[0]["token"]
    other = '<div class="jp-OutputArea"><div class="jp-OutputArea-child"></div></div>'
    child = '<div class="jp-OutputArea-child"{}>{}</div>'
    cell = f'<div class="jp-OutputArea">{child.format("", explored.html())}</div>'
    tab.open(a_page(tmp_path, cell, other))
    table = "document.querySelector('.live-figure').offsetHeight > 0"
    place = "document.querySelector('.jp-OutputArea')"

    def put(markup: str) -> None:
        tab.value(f"{place}.insertAdjacentHTML('beforeend', {json.dumps(markup)})")

    second = f"{place}.lastChild.offsetHeight > 0"
    tab.value(f"document.querySelectorAll('.jp-OutputArea')[1].className += ' {token}'")
    assert tab.value(table), "the controls of another cell are not this one's"
    put(child.format("", f'<div class="jupyter-widgets {token}">controls</div>'))
    assert not tab.value(table)
    assert tab.value(second)
    tab.value(f"{place}.lastChild.remove()")
    assert tab.value(table)
    put(child.format("", "Error displaying widget: model not found"))
    assert tab.value(table)
    assert not tab.value(second)
    tab.value(f"{place}.lastChild.textContent = 'something else'")
    assert tab.value(second)


# In the book


CHAPTERS = ["02-adams-moments", "04-drift"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_chapters_pages_have_the_table_and_no_dead_widget(site: Path, chapter: str) -> None:
    text = (site / "chapters" / f"{chapter}.html").read_text(encoding="utf-8")
    config, states = config_and_states(text)
    assert len(config["states"]) > len(config["knobs"])
    assert len({str(state) for state in states}) == len(states) > 3
    assert "jupyter.widget" not in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_chapters_knobs_are_turned_in_a_browser(site: Path, tab: Any, chapter: str) -> None:
    page = site / "chapters" / f"{chapter}.html"
    config, states = config_and_states(page.read_text(encoding="utf-8"))
    tab.open(page)
    tab.value("document.querySelector('.live-figure.explore input').focus()")
    knobs = config["knobs"]
    shown = [(tab.press(key), tab.value(SEEN))[1] for key in ("Home", "End")]
    for end, (words,) in zip((0, len(knobs[0]["values"]) - 1), shown, strict=True):
        place = 0
        for knob, choice in zip(knobs, [end, *(knob["start"] for knob in knobs[1:])], strict=True):
            place = place * len(knob["values"]) + choice
        assert words == states[config["states"][place]].get_text()
    assert shown[0] != shown[1]


# What is asked for wrongly


def takes(x=1, y=2):
    return x + y


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({}, "no knobs"),
        ({"x": []}, "no values"),
        ({"x": [3]}, "only one value"),
        ({"x": (1, 2)}, "a tuple means"),
        ({"x": (1, "2", 3)}, "a tuple means"),
        ({"x": (2, 1, 1)}, "low is below high"),
        ({"x": (1, 2, 0)}, "step above zero"),
        ({"x": (1, 2, -1)}, "step above zero"),
        ({"x": (0, 1, 2)}, "only one value"),
        ({"x": (0, 1, 1e-9)}, "larger step"),
        ({"x": (0, float("inf"), 1)}, "finite"),
        ({"x": [1, float("nan")]}, "finite"),
        ({"x": [1, 2, 1]}, "twice"),
        ({"x": [1, 1.0]}, "twice"),
        ({"x": [True, 1]}, "twice"),
        ({"x": [0.0, -0.0]}, "twice"),
        ({"x": "abc"}, "a knob is a list"),
        ({"x": 5}, "a knob is a list"),
        ({"x": None}, "a knob is a list"),
        ({"x": {1, 2}}, "a knob is a list"),
        ({"x": {1: 2}}, "a knob is a list"),
        ({"x": (k for k in range(3))}, "a knob is a list"),
        ({"x": [[1], [2]]}, "type list"),
        ({"x": np.ones((2, 2))}, "type ndarray"),
        ({"x": [1 + 2j, 3]}, "type complex"),
        ({"x": range(10**12)}, "at most 60"),
        ({"x": range(10), "y": range(7)}, "70 settings"),
        ({"z": [1, 2]}, "unexpected keyword argument 'z'"),
    ],
)
def test_odd_knobs_are_refused_with_a_sentence(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(words)):
        explore(takes, **knobs)


@pytest.mark.parametrize("result", [None, [1], object(), 1j, (1, 2), b"x"])
def test_odd_results_are_refused_and_the_setting_is_named(result: Any) -> None:
    with pytest.raises(RefusedError, match="the function returned") as caught:
        explore(lambda x: result, x=[3, 4])
    assert caught.value.__notes__ == ["explore() had set x 3"]


def test_an_argument_without_a_value_is_missed() -> None:
    with pytest.raises(RefusedError, match="missing a required argument: 'y'"):
        explore(lambda x, y: x, x=[1, 2])


def test_no_function_is_refused() -> None:
    with pytest.raises(RefusedError, match="needs a function"):
        explore(3, x=[1, 2])  # type: ignore[arg-type]


def test_an_error_of_the_function_keeps_its_type_and_names_the_setting() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        explore(lambda x, y: x / y, x=[1, 2], y=[1, 0])
    assert caught.value.__notes__ == ["explore() had set x 1, y 0"]


def test_heavy_pages_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"take \d+ kB; a page carries at most 800"):
        explore(lambda n: "x" * 100_000 + str(n), n=range(9))
