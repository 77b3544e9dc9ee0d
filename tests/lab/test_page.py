"""What the page is made of; what a browser makes of it is tested in a browser."""

import base64
import hashlib
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import stepcredit as sc
from stepcredit.errors import InputError
from stepcredit.lab.page import embed, render, render_study, write_page
from stepcredit.lab.rollout_files import read_rollouts
from stepcredit.lab.score import Scored, score_rollouts
from stepcredit.lab.study import Arm, Study

ALONE = Study("", [], [], [], {})


def row(
    completion: str, *, number: int = 1, group: str = "g", credit: float = 0.5, kind: str = "pass"
) -> dict[str, Any]:
    n = len(completion)
    return {
        "row": number,
        "group": group,
        "prompt": "p",
        "completion": completion,
        "reward": 1.0,
        "counted": True,
        "estimator": kind,
        "offsets": [[i, i + 1] for i in range(n)],
        "advantages": [credit] * n,
        "segment_ids": [0] * n,
        "terms": {"outcome": [credit] * n},
    }


class Elements(html.parser.HTMLParser):
    """The elements of a page: tag, attributes and, where it is a script or a style, the text."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for found, _, text in self.found if found == tag]


def data_of(page: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(page).texts("script")[0])
    return data


def scored(tmp_path: Path) -> list[Scored]:
    rows = [
        {"prompt": f"p{i // 2}", "completion": f"a b{i}", "group": i // 2, "reward": i % 2} for i in range(6)
    ]  # 3 groups of 2 rollouts
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return score_rollouts(read_rollouts(path), [sc.GRPO(), sc.DrGRPO()])


def test_the_first_groups_of_scored_rollouts(tmp_path: Path) -> None:
    results = scored(tmp_path)
    data = data_of(render(results, groups=2, title="t"))
    assert (data["title"], data["study"]) == ("t", None)
    (shown,) = data["sets"]
    assert (shown["all_groups"], [group["rows"] for group in shown["groups"]]) == (3, [[0, 1], [2, 3]])
    assert ["".join(rollout["characters"]) for rollout in shown["rollouts"]] == ["a b0", "a b1", "a b2", "a b3"]
    assert [(scheme["name"], scheme["options"]) for scheme in data["schemes"]] == [
        ("GRPO", repr(sc.GRPO())),
        ("DrGRPO", repr(sc.DrGRPO())),
    ]
    want = results[1].rows()[3]["advantages"]
    assert data["schemes"][1]["rollouts"][3]["advantages"] == pytest.approx(want, abs=1e-6)


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    results = scored(tmp_path)
    write_page(tmp_path / "page.html", results, groups=1, title="t")
    assert (tmp_path / "page.html").read_bytes() == render(results, groups=1, title="t")
    with pytest.raises(InputError, match="`--html` must lie in a folder that exists"):
        write_page(tmp_path / "no" / "page.html", results, groups=1, title="t")


def test_schemes_share_their_rollouts_where_these_are_equal() -> None:
    same, other = [row("ab"), row("c", number=2, group="h")], [row("xy"), row("z", number=2, group="h")]
    paid = [{**each, "advantages": [-each["advantages"][0]] * len(each["advantages"])} for each in same]
    data = data_of(render_study(ALONE, {"a": same, "b": paid, "c": other}, groups=1, title="t"))
    assert [scheme["set"] for scheme in data["schemes"]] == [0, 0, 1]
    assert [["".join(each["characters"]) for each in shown["rollouts"]] for shown in data["sets"]] == [["ab"], ["xy"]]
    assert [shown["all_groups"] for shown in data["sets"]] == [2, 2]
    assert [scheme["rollouts"][0]["advantages"] for scheme in data["schemes"]] == [[0.5] * 2, [-0.5] * 2, [0.5] * 2]


def test_a_scheme_is_described_by_its_estimator() -> None:
    data = data_of(
        render_study(ALONE, {"pass": [row("a")], "pooled": [row("a", kind="grpo_process")]}, groups=1, title="")
    )
    assert [scheme["options"] for scheme in data["schemes"]] == ["", "grpo_process"]


def test_a_study_as_plain_values() -> None:
    a = Arm("a", {"loss": [(1, 2.0), (2, math.nan), (4, None)], "length": [(1, 1 / 3)]})
    b = Arm("b", {"loss": [(3, -math.inf)], "entropy": []})
    study = Study("note", ["arm", "x"], [["a", "1"], ["b", "2"]], [a, b], {"loss": "nats"})
    data = data_of(render_study(study, {}, groups=1, title="t"))
    assert (data["sets"], data["schemes"]) == ([], [])
    assert data["study"] == {
        "note": "note",
        "columns": ["arm", "x"],
        "rows": [["a", "1"], ["b", "2"]],
        "arms": ["a", "b"],
        "steps": [1, 4],
        "charts": [
            {
                "name": "loss",
                "unit": "nats",
                "lines": [
                    {"arm": 0, "points": [[1, 2.0], [2, None], [4, None]]},
                    {"arm": 1, "points": [[3, "\u2212\u221e"]]},
                ],
            },
            {"name": "length", "unit": "", "lines": [{"arm": 0, "points": [[1, 0.333333]]}]},
            {"name": "entropy", "unit": "", "lines": [{"arm": 1, "points": []}]},
        ],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [["a"], ["a", "b"]]}, r"`rows` must have one cell a column, 1; got 2 in row 2\."),
        ({"arms": [Arm("a", {}), Arm("a", {})]}, r"`arms` must have different names; got \['a', 'a'\]\."),
        ({"arms": [Arm("a", {"x": [(1, 0.0), (1, 0.0)]})]}, r"increasing steps; got 1 after 1 in 'x' of 'a'\."),
        ({"units": {"y": "nats"}}, r"`units` must name curves of the arms, x; got 'y'\."),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "note": "",
        "columns": ["arm"],
        "rows": [["a"]],
        "arms": [Arm("a", {"x": []})],
        "units": {},
    }
    with pytest.raises(InputError, match=message):
        Study(**{**fields, **change})


def test_credit_that_has_no_color_is_refused() -> None:
    with pytest.raises(InputError, match=r"`advantages` must be finite to be shown; got nan in row 7 of 'mine'\."):
        render_study(ALONE, {"mine": [row("ab", number=7, credit=math.nan)]}, groups=1, title="t")


def test_the_page_fetches_nothing_and_runs_its_own_script_alone() -> None:
    page = render_study(ALONE, {"a": [row("ab")]}, groups=1, title="t")
    elements = Elements(page)
    (policy,) = [
        str(has["content"]) for tag, has, _ in elements.found if has.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(elements.texts(tag)[-1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not [has for _, has, _ in elements.found if {"src", "href", "style", "onload", "onclick"} & has.keys()]
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|@import|url\(", page)
    assert page.isascii()


def test_no_text_can_leave_the_data() -> None:
    hostile = "</script><script>x</script><!-- ]]> {{script}} {{data}} \u2028 \ud800 \x00 ${x} `"
    study = Study(hostile, [hostile], [[hostile]], [Arm(hostile, {hostile: [(1, 1.0)]})], {hostile: hostile})
    page = render_study(study, {hostile: [row(hostile, group=hostile)]}, groups=1, title=hostile)
    plain = render_study(ALONE, {"a": [row("a")]}, groups=1, title="t")
    assert [tag for tag, *_ in Elements(page).found] == [tag for tag, *_ in Elements(plain).found]
    data = data_of(page)
    assert data["title"] == data["study"]["note"] == data["study"]["charts"][0]["unit"] == hostile
    assert "".join(data["sets"][0]["rollouts"][0]["characters"]) == hostile


def test_embedded_data_is_strict_json() -> None:
    assert json.loads(embed({"<&>": "\ud800\u2028"})) == {"<&>": "\ud800\u2028"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(math.nan)
