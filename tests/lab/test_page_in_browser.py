"""The page as a browser shows it: what stands there, what it answers to, and that nothing hostile gets through."""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stepcredit.lab.page import render_study
from stepcredit.lab.study import Arm, Study

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright for Python is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: set CHROMIUM, or install chromium or google-chrome"
)
QUIET = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'><svg onload=alert(1)>",
    "<!-- ]]> &lt;b&gt; &amp; {{data}} {{script}}",
    "\"'`${window.hacked = 1}` \\u0041 \\ %3Cb%3E",
    "nul \x00 escape \x1b[31m line \u2028 paragraph \u2029 return \r end",
    "lone \ud800 and \udfff, pair \U0001f600, family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "right \u202egnp.exe\u202c left \u200f \u2066 \u05e9\u05dc\u05d5\u05dd \u0639\u0631\u0628",
    "x" * 3000,
    "__proto__ constructor toString",
]


class Opener:
    """Opens pages, one after the other, and keeps what a page must not do: messages, dialogs, requests."""

    def __init__(self, page: "Page", folder: Path) -> None:
        self.page, self.path, self.wrong = page, folder / "page.html", list[str]()
        page.set_default_timeout(180_000)
        page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", self._dismiss)
        page.on("request", self._requested)
        page.route("**/*", self._answer)

    def __call__(self, html: bytes, *, width: int = 1000, scheme: Any = "light") -> "Page":
        self.path.write_bytes(html)
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.emulate_media(color_scheme=scheme)
        self.page.mouse.move(0, 0)
        self.page.goto(self.path.as_uri())
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # drawn
        return self.page

    def _own(self, request: Any) -> bool:
        return bool(request.url == self.path.as_uri())

    def _requested(self, request: Any) -> None:
        if not self._own(request):
            self.wrong.append(f"request: {request.url}")

    def _dismiss(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _answer(self, route: Any) -> None:
        if self._own(route.request):
            route.continue_()
        else:
            self.wrong.append(f"fetched: {route.request.url}")
            route.abort()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    with playwright.sync_playwright() as p:
        args = [f"--{name}" for name in QUIET.split()]
        launched = p.chromium.launch(executable_path=CHROMIUM, args=args, timeout=180_000)
        yield Opener(launched.new_page(), tmp_path_factory.mktemp("page"))
        launched.close()


@pytest.fixture
def opened(browser: Opener) -> Iterator[Opener]:
    yield browser
    wrong, browser.wrong = browser.wrong, []
    assert wrong == []


def row(completion: str, credit: Sequence[float] | None = None, **fields: Any) -> dict[str, Any]:
    """A rollout of one token a character, with the credit given."""
    advantages = [0.5] * len(completion) if credit is None else list(credit)
    made = {
        "row": 1,
        "group": "g",
        "prompt": "p",
        "completion": completion,
        "reward": 1.0,
        "counted": True,
        "estimator": "pass",
        "offsets": [[i, i + 1] for i in range(len(completion))],
        "advantages": advantages,
        "segment_ids": [0] * len(advantages),
        "terms": {"process": [x / 4 for x in advantages], "outcome": [x * 3 / 4 for x in advantages]},
    }
    return {**made, **fields}


def study(*arms: Arm, units: dict[str, str] | None = None) -> Study:
    return Study("note", ["arm", "final"], [[arm.name, "1.0"] for arm in arms], arms, units or {})


def show(study: Study, tables: dict[str, list[dict[str, Any]]] | None = None, title: str = "title") -> bytes:
    return render_study(study, tables or {}, groups=99, title=title)


def utf16(text: str) -> list[int]:
    """The code units that JavaScript sees."""
    units = text.encode("utf-16-le", "surrogatepass")
    return [units[i] | units[i + 1] << 8 for i in range(0, len(units), 2)]


def units_of(page: "Page", selector: str) -> list[list[int]]:
    """The text of every element found; as numbers, which carry what no JSON does."""
    script = "all => all.map(e => Array.from({length: e.textContent.length}, (_, i) => e.textContent.charCodeAt(i)))"
    found: list[list[int]] = page.locator(selector).evaluate_all(script)
    return found


def drawn(page: "Page", chart: int, arm: int) -> list[list[tuple[float, float]]]:
    """The places that an arm's line joins, one list a stretch."""
    d = page.locator(f"figure >> nth={chart}").locator(f"[data-arm='{arm}'] path").get_attribute("d") or ""
    return [[(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", run)] for run in d.split("M")[1:]]


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").replace(",", ""))


def axis(page: "Page", chart: int, *, vertical: bool) -> Callable[[float], float]:
    """Value -> pixel, by the first and the last tick that the reader sees."""
    anchor, at = ("end", "y") if vertical else ("middle", "x")
    labels = page.locator(f"figure >> nth={chart}").locator(f"text[text-anchor={anchor}]")
    places = labels.evaluate_all("(all, at) => all.map(e => [e.textContent, +e.getAttribute(at)])", at)
    ((low, start), *_, (high, end)) = [(number(text), place - 4 * vertical) for text, place in places]
    return lambda value: float(start + (value - low) / (high - low) * (end - start))


WAVE = [(step, round(0.5 + 0.4 * math.sin(step / 7), 3)) for step in range(0, 101, 5)]
FALL = [(step, round(50 - step / 3, 1)) for step in range(0, 101, 5)]


def test_a_line_stands_where_the_axes_say(opened: Opener) -> None:
    arms = [
        Arm("a", {"accuracy": WAVE, "length": FALL}),
        Arm("b", {"accuracy": [(0, 0.1), (100, 0.9)], "length": FALL}),
    ]
    page = opened(show(study(*arms, units={"length": "tokens"})))
    assert page.locator("figcaption").all_inner_texts() == ["accuracy", "length\ntokens"]
    for chart, points in enumerate((WAVE, FALL)):
        x, y = axis(page, chart, vertical=False), axis(page, chart, vertical=True)
        (line,) = drawn(page, chart, 0)
        assert len(line) == len(points) == 21
        for (step, value), (left, top) in zip(points, line, strict=True):
            assert (left, top) == (pytest.approx(x(step), abs=0.02), pytest.approx(y(value), abs=0.02))
        assert sorted(range(21), key=lambda i: points[i][1]) == sorted(range(21), key=lambda i: -line[i][1])
    ((first, last),) = drawn(page, 0, 1)
    assert first[1] > last[1], "more is higher"
    assert first[0] < last[0], "later is further right"


def test_arms_differ_without_their_color(opened: Opener) -> None:
    page = opened(show(study(*(Arm(f"arm {i}", {"x": [(0, i), (9, i)]}) for i in range(5)))))
    lines = page.locator(".plot .line")
    assert len(set(lines.evaluate_all("all => all.map(e => getComputedStyle(e).strokeDasharray)"))) == 5
    assert len(set(lines.evaluate_all("all => all.map(e => getComputedStyle(e).stroke)"))) == 5
    names = page.locator("text.name")
    assert names.all_text_contents() == ["arm 4", "arm 3", "arm 2", "arm 1", "arm 0"], "each at the height of its line"
    places = names.evaluate_all("all => all.map(e => +e.getAttribute('y'))")
    assert all(below - above >= 12 for above, below in pairwise(places))
    assert page.locator("#legend li").all_inner_texts() == [f"arm {i}" for i in range(5)]
    assert page.locator("#results tbody th .swatch").count() == 5


def test_gaps_lone_points_and_numbers_that_are_none(opened: Opener) -> None:
    points = [(1, 1.0), (2, 2.0), (3, None), (4, 3.0), (5, math.nan), (6, 1.0), (7, math.inf), (8, 2.0), (9, 2.5)]
    page = opened(show(study(Arm("a", {"x": points, "nothing": [(1, None)], "flat": [(5, -0.0)], "empty": []}))))
    assert [len(run) for run in drawn(page, 0, 0)] == [2, 1, 1, 2]
    dots = page.locator("figure >> nth=0").locator(".dot")
    assert [dots.nth(i).get_attribute("cx") for i in range(2)] == [f"{drawn(page, 0, 0)[i][0][0]:.2f}" for i in (1, 2)]
    assert page.locator("figure >> nth=1").locator(".plot").count() == 0
    assert "No values." in page.locator("figure >> nth=1").inner_text()
    assert [len(run) for run in drawn(page, 2, 0)] == [1]
    page.locator("summary").first.click()
    page.locator("details table").wait_for()
    cells = page.locator("figure >> nth=0").locator("td").all_inner_texts()
    assert cells == ["1", "2", "\u2013", "3", "\u2013", "1", "\u221e", "2", "2.5"]


@pytest.mark.parametrize(
    "values",
    [
        (1e308, -1e308),
        (5e-324, 0.0),
        (1e300, 1e300),
        (1e-7, 2e-7),
        (-3.0, -3.0),
        (123456789.0, 123456790.0),
        (1e9, 0.012),
    ],
    ids=str,
)
def test_any_range_can_be_drawn(opened: Opener, values: tuple[float, float]) -> None:
    page = opened(show(study(Arm("a", {"x": [(1, values[0]), (10**12, values[1])]}))))
    ((first, last),) = drawn(page, 0, 0)
    assert all(math.isfinite(x) and 0 <= x <= 1000 for x in (*first, *last))
    assert (first[1] < last[1]) == (values[0] > values[1])
    page.locator(".plot").press("Home")
    shown = page.locator("#tip td").last.inner_text()
    assert number(shown) == pytest.approx(values[0], rel=0.01)


def test_hovering_shows_every_arm_at_the_nearest_step(opened: Opener) -> None:
    page = opened(show(study(Arm("a", {"x": WAVE}), Arm("b", {"x": [(50, 0.25)]}))))
    box = page.locator(".plot").bounding_box()
    assert box
    for i in (0, 10, 20):
        page.mouse.move(box["x"] + drawn(page, 0, 0)[0][i][0] + 2, box["y"] + 80)
        step, value = WAVE[i]
        other = "0.250" if step == 50 else "\u2013"
        assert page.locator("#tip").inner_text().split() == ["step", str(step), "a", f"{value:.3f}", "b", other]
        assert page.locator(".cursor circle").count() == (2 if step == 50 else 1)
    page.mouse.move(5, 5)
    assert page.locator("#tip").inner_text() == ""
    assert page.locator(".cursor *").count() == 0


def test_one_chart_at_a_time_is_read(opened: Opener) -> None:
    page = opened(show(study(Arm("a", {"x": WAVE, "y": FALL})), {"s": [row("a\n" * 99)]}))
    plots, marks = page.locator(".plot"), page.locator(".cursor line")
    plots.nth(0).focus()
    plots.nth(1).hover()
    assert page.locator("figure >> nth=1").locator(".cursor line").count() == marks.count() == 1
    plots.nth(0).press("Home")
    assert page.locator("figure >> nth=0").locator(".cursor line").count() == marks.count() == 1
    page.mouse.move(5, 5)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    marks.wait_for(state="detached")
    assert page.locator("#tip").inner_text() == ""


def test_the_keyboard_walks_a_chart(opened: Opener) -> None:
    page = opened(show(study(Arm("a", {"x": WAVE}))))
    page.locator("#results").focus()
    page.keyboard.press("Tab")
    plot = page.locator(".plot")
    assert plot.evaluate("e => e === document.activeElement")
    assert plot.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for key, at in (
        ("", 20),
        ("ArrowLeft", 19),
        ("Home", 0),
        ("ArrowRight", 1),
        ("PageUp", 11),
        ("End", 20),
        ("End", 20),
    ):
        if key:
            page.keyboard.press(key)
        step, value = WAVE[at]
        assert page.locator("#tip").inner_text().split() == ["step", str(step), "a", f"{value:.3f}"]
        assert plot.get_attribute("aria-valuetext") == f"step {step}: a {value:.3f}"
        assert plot.get_attribute("aria-valuenow") == str(step)
    page.keyboard.press("Escape")
    assert page.locator("#tip").inner_text() == ""
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("details table").wait_for()
    assert page.locator("details tbody tr").count() == 21


def test_a_button_shows_its_scheme(opened: Opener) -> None:
    up, down = [row("ab", [1.0, -1.0])], [row("ab", [-0.5, 0.0])]
    page = opened(show(study(), {"up": up, "down": down, "other": [row("xyz", prompt="q", reward=None)]}))
    tokens, buttons = page.locator(".token"), page.locator("#schemes button")
    color = "all => all.map(e => getComputedStyle(e).backgroundColor)"
    assert tokens.all_inner_texts() == ["a", "b"]
    plus, minus = tokens.evaluate_all(color)
    assert plus == "rgba(37, 99, 235, 0.376)", "twice the median, 2, is full color, 0.75"
    assert minus == "rgba(217, 95, 2, 0.376)"
    tokens.nth(1).hover()
    want = [
        '"b"',
        "process",
        "\u22120.250",
        "outcome",
        "\u22120.750",
        "credit",
        "\u22121.000",
        "token",
        "1,",
        "segment",
        "0",
    ]
    assert page.locator("#tip").inner_text().split() == want
    tokens.first.evaluate("e => { e.kept = true; }")
    buttons.nth(1).click()
    assert tokens.first.evaluate("e => e.kept"), "the same rollouts are painted anew, not made anew"
    assert tokens.evaluate_all(color) == ["rgba(217, 95, 2, 0.376)", "rgba(0, 0, 0, 0)"]
    assert [buttons.nth(i).get_attribute("aria-pressed") for i in range(3)] == ["false", "true", "false"]
    buttons.nth(2).click()
    assert tokens.all_inner_texts() == ["x", "y", "z"]
    assert page.locator(".prompt").inner_text() == "q"
    assert "no reward" in page.locator("article").inner_text()
    buttons.nth(0).click()
    assert tokens.all_inner_texts() == ["a", "b"]


def test_the_keyboard_walks_tokens_and_rollouts(opened: Opener) -> None:
    rows = [row("abc"), row("", row=2), row("de", row=3)]
    page = opened(show(study(), {"s": rows}))
    page.locator("#schemes button").focus()
    focused = "document.activeElement.textContent"
    for key, want in (("Tab", "a"), ("ArrowRight", "b"), ("End", "c"), ("ArrowDown", "d"), ("ArrowRight", "e")):
        page.keyboard.press(key)
        assert page.evaluate(focused) == want
        assert page.locator("#tip").inner_text().startswith(f'"{want}"')
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "c", "a rollout keeps its place"


def test_tokens_without_characters_keep_their_credit(opened: Opener) -> None:
    bytes_of_one = row("\U0001f600!", [1.0, -1.0, 1.0], offsets=[[0, 1], [0, 1], [1, 2]])
    page = opened(show(study(), {"s": [bytes_of_one]}))
    assert page.locator(".token").all_text_contents() == ["\U0001f600", "", "!"]
    assert page.locator(".text").text_content() == "\U0001f600!"
    box = page.locator(".token").nth(1).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "\u22121.000" in page.locator("#tip").inner_text()


def test_hostile_texts_are_shown_as_they_are(opened: Opener) -> None:
    arms = [Arm(text, {text: [(1, 1.0), (2, 2.0)]}) for text in HOSTILE]
    columns, cells = [*HOSTILE], [HOSTILE, HOSTILE[::-1]]
    made = Study("\n".join(HOSTILE), columns, cells, arms, {text: text for text in HOSTILE})
    rows = [
        row(text, prompt=text, group=text, row=i, terms={text: [0.5] * len(text)}) for i, text in enumerate(HOSTILE)
    ]
    page = opened(show(made, dict.fromkeys(HOSTILE, rows), "".join(HOSTILE)), width=380)
    want = [utf16(text) for text in HOSTILE]
    assert units_of(page, "h1") == [utf16("".join(HOSTILE))]
    assert units_of(page, "#note") == [utf16("\n".join(HOSTILE))]
    for selector in ("#results thead th", "#legend li", "#schemes button", "figcaption h3", "figcaption > span"):
        assert units_of(page, selector) == want, selector
    assert units_of(page, "#results tbody tr:first-child > *") == want
    assert units_of(page, ".group h3") == [utf16("group " + text) for text in HOSTILE]
    assert units_of(page, ".prompt") == want
    assert units_of(page, ".text") == want
    assert units_of(page, ".text >> nth=5 >> .token") == [utf16(character) for character in HOSTILE[5]]
    page.locator(".plot").nth(4).press("Home")
    page.locator("summary").first.click()
    for i in range(len(HOSTILE)):
        page.locator("#schemes button").nth(i).click()
        page.locator(".token").nth(3).focus()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, object, embed, link, base, form").count() == 0
    assert page.locator("script").count() == 2


def test_unseen_characters_are_seen_and_turn_nothing_around(opened: Opener) -> None:
    page = opened(show(study(), {"s": [row("ab\u202ecd\x00\n\ud800\u200d")]}))
    assert page.locator(".unseen").evaluate_all("all => all.map(e => e.dataset.code)") == ["202E", "0000", "D800"]
    assert all(width > 10 for width in page.locator(".unseen").evaluate_all("all => all.map(e => e.offsetWidth)"))
    left = page.locator(".token").evaluate_all("all => all.slice(0, 5).map(e => e.getBoundingClientRect().left)")
    assert left == sorted(left)
    page.locator(".token").nth(2).hover()
    assert page.locator("#tip").inner_text().startswith('"\\u202E"')


def test_what_got_in_could_neither_run_nor_fetch(opened: Opener) -> None:
    page = opened(show(study()))
    blocked = page.evaluate("""async () => {
      const seen = [];
      document.addEventListener("securitypolicyviolation", event => seen.push(event.effectiveDirective));
      const image = document.createElement("img");
      image.src = "http://127.0.0.1:9/x.png";
      const script = document.createElement("script");
      try { script.text = "window.hacked = 1"; } catch (error) { seen.push(error.name); }
      try { document.body.innerHTML = "<b>x</b>"; } catch (error) { seen.push(error.name); }
      document.body.append(image);
      await fetch("http://127.0.0.1:9/").catch(error => seen.push(error.name));
      for (let i = 0; i < 100 && !(seen.includes("img-src") && seen.includes("connect-src")); i++)
        await new Promise(done => setTimeout(done, 50));
      return seen;
    }""")
    assert blocked.count("TypeError") == 3, "script text, markup, fetch"
    assert {"img-src", "connect-src"} <= set(blocked)
    assert page.evaluate("window.hacked") is None
    assert not [each for each in opened.wrong if each.startswith(("fetched", "dialog", "error"))]
    opened.wrong.clear()  # the console told of each of these


def contrast(page: "Page", selector: str) -> float:
    """The least contrast of a text with what lies behind it, backgrounds blended; WCAG 2.2."""
    least: float = page.locator(selector).evaluate_all("""all => {
      const parse = color => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
      const behind = e => {
        const own = parse(getComputedStyle(e).backgroundColor);
        const under = e.parentElement ? behind(e.parentElement) : [255, 255, 255];
        return [0, 1, 2].map(i => own[i] * own[3] + under[i] * (1 - own[3]));
      };
      const linear = x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
      const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
      return Math.min(...all.map(e => {
        const style = getComputedStyle(e), name = {text: "fill", path: "stroke"}[e.tagName] || "color";
        const [x, y] = [light(parse(style[name])), light(behind(e))].sort((a, b) => b - a);
        return (x + 0.05) / (y + 0.05);
      }));
    }""")
    return least


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_in_the_dark_and_on_a_phone(opened: Opener, scheme: str, width: int) -> None:
    arms = [Arm(f"arm {i}", {f"metric {j}": WAVE for j in range(4)}) for i in range(6)]
    rows = [row("abcd", [9.0, -9.0, 0.1, 0.0], segment_ids=[0, 0, 1, -1], row=i) for i in range(8)]
    wide = Study("note", ["a long column head"] * 9, [["123.45"] * 9], arms, {})
    page = opened(show(wide, {f"scheme {i}": rows for i in range(8)}), width=width, scheme=scheme)
    for selector in ("h1", "#note", "th", "td", "h3", "h4", "button", "#shown", ".prompt", ".token", ".plot text"):
        assert contrast(page, selector) >= 4.5, selector
    assert contrast(page, ".plot .line") >= 3
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert (sum(map(int, re.findall(r"\d+", ink))) > 400) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    plots = page.locator(".plot").evaluate_all(
        "all => all.map(e => [e.clientWidth, e.querySelector('svg').clientWidth])"
    )
    assert all(250 < outer == inner < width for outer, inner in plots)
    boxes = "all => all.map(e => [e.getBBox().x, e.getBBox().x + e.getBBox().width, e.ownerSVGElement.clientWidth])"
    assert all(0 <= left < right <= room for left, right, room in page.locator(".plot text").evaluate_all(boxes))


def test_charts_follow_the_width(opened: Opener) -> None:
    page = opened(show(study(Arm("a", {"x": WAVE}))))
    before = drawn(page, 0, 0)[0]
    page.set_viewport_size({"width": 400, "height": 800})
    for _ in range(100):
        after = drawn(page, 0, 0)[0]
        if after != before:
            break
        page.wait_for_timeout(50)
    assert after[-1][0] < 400 < before[-1][0]
    assert [y for _, y in after] == [y for _, y in before]


def test_a_long_study_opens_soon_and_keeps_its_extremes(opened: Opener) -> None:
    points = [(step, 40.0 if step == 777 else -3.0 if step == 1500 else math.sin(step)) for step in range(2000)]
    arms = [Arm(f"arm {i}", {f"metric {j}": points for j in range(4)}) for i in range(4)]
    rows = [row("0123456789" * 10, [math.sin(i + t) for t in range(100)], row=i) for i in range(64)]
    page = opened(show(study(*arms), {f"scheme {i}": rows for i in range(4)}))
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})  # work done, whatever else the machine does
    page.reload()
    page.locator(".curve").nth(15).wait_for(state="attached")
    page.locator("#schemes button").nth(3).click()
    page.locator(".plot").first.hover()
    metrics = {each["name"]: each["value"] for each in tools.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["TaskDuration"] < 5, "seconds"
    (line,) = drawn(page, 0, 0)
    assert page.locator(".token").count() == 6400
    assert 200 < len(line) <= 402
    x, y = axis(page, 0, vertical=False), axis(page, 0, vertical=True)
    for step in (777, 1500):
        assert (round(x(step), 2), round(y(points[step][1]), 2)) in [(round(a, 2), round(b, 2)) for a, b in line]
    page.locator("summary").first.click()
    page.locator("details table").wait_for()
    assert page.locator("details tbody tr").count() == 2000
    assert page.locator("details tbody tr").nth(777).inner_text().split() == ["777", "40", "40", "40", "40"]
