"""Names and option texts to objects; what is unknown is answered with the nearest name."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import stepcredit as sc
from stepcredit import InputError
from stepcredit.config import build_estimator, build_signal, parse_overrides
from stepcredit.estimators import Assignment, Compacted


@dataclass(frozen=True, kw_only=True)
class Halved(sc.Estimator):
    """A user's own scheme: half the reward, on every token."""

    type: ClassVar[str] = "halved"
    requires = frozenset({"rewards"})
    factor: float = 0.5

    def assign(self, view: Compacted) -> Assignment:
        return Assignment.linear({"outcome": self.factor * view.channels["outcome"]}, view.rows.spread)


@pytest.mark.parametrize("name", sorted(sc.ESTIMATORS))
def test_every_scheme_is_built_by_name_with_its_defaults(name: str) -> None:
    assert build_estimator(name) == sc.ESTIMATORS[name]()


def test_options_reach_the_scheme() -> None:
    options = parse_overrides(["k=1", "norm=abs_max", "fusion=summed", "min_chunk=2"])
    assert build_estimator("pass", options) == sc.PASS(k=1, norm="abs_max", fusion="summed", min_chunk=2)
    assert build_estimator("spro", parse_overrides(["clip=None", "column_std=True"])) == sc.SPRO(column_std=True)
    weights = parse_overrides(['w_extra={"length": 0.5}'])
    assert build_estimator("grpo", weights) == sc.GRPO(w_extra={"length": 0.5})
    assert build_signal("gopd", {"lam": 2.0}) == sc.GOPD(lam=2.0)


def test_ones_own_scheme_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "my_schemes", __import__("types").SimpleNamespace(Halved=Halved, other=1)
    )
    batch = sc.RolloutBatch.from_lists([2], [0], [1.0])
    assert build_estimator("my_schemes:Halved", {"factor": 0.25})(batch).advantages.tolist() == [[0.25, 0.25]]
    with pytest.raises(InputError, match="must name a class"):
        build_estimator("my_schemes:other")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pas", {}, "`estimator` must be a known name .* got 'pas'; did you mean pass"),
        ("zzz", {}, "known are grpo, dr_grpo"),
        ("pass", {"kk": 1}, "`kk` must be an option of pass; did you mean k"),
        ("pass", {"fuson": 1}, "`fuson` must be an option of pass; did you mean fusion"),
        ("pass", {"k": -1}, "`k` must be finite and >= 0.* for PASS; got -1"),
        ("pass", {"k": "much"}, "`k` must be float for PASS; got 'much'"),
        ("pass", {"k": float("nan")}, "`k` must be finite"),
        ("pass", {"k": True}, "`k` must be float for PASS; got True"),
        ("pass", {"min_chunk": 0}, "`min_chunk` must be finite and >= 1"),
        ("pass", {"min_chunk": 1.5}, "`min_chunk` must be int"),
        ("pass", {"norm": "zscore"}, "`norm` must be one of 'masked_norm', 'abs_max' for PASS; got 'zscore'"),
        ("pass", {"norm": ["abs_max"]}, "`norm` must be one of"),
        ("grpo", {"correction": -1}, "`correction` must be finite and >= 0"),
        ("grpo", {"w_extra": {"a": "b"}}, r"`w_extra\['a'\]` must be float"),
        ("grpo", {"w_extra": 3}, "`w_extra` must be a mapping"),
        ("spro", {"clip": 0}, "`clip` must be finite and > 0"),
        ("spro", {"column_std": "yes"}, "`column_std` must be bool"),
        ("reinforce_pp", {"gamma": 1.5}, "`gamma` must be finite and >= 0 and <= 1"),
        ("no.such.module:X", {}, "could not be imported"),
        ("stepcredit:RolloutBatch", {}, "`estimator`"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_estimator(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("calc", {}, "did you mean calculator"),
        ("gopd", {"lam": "x"}, "`lam` must be float for GOPD; got 'x'"),
        ("gopd", {"lam": float("nan")}, "`lam` must be finite for GOPD"),
        ("log_ratio", {"beta": None}, "`beta` must be float"),
        ("stepcredit.estimators:GRPO", {}, "`signal` must name a signal class"),
        ("builtins:str", {}, "`signal` must name a signal class"),
        (None, {}, "`signal` must be a name"),
    ],
)
def test_what_is_wrong_with_a_signal_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_signal(name, options)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="could not be imported: ZeroDivisionError: division by zero"):
        build_estimator("breaks_on_import:X")
    for name in (None, ".relative:X", "builtins:str"):
        with pytest.raises(InputError, match="`estimator`"):
            build_estimator(name)
    with pytest.raises(InputError, match="`k` must be finite"):
        sc.PASS(k=10**400)


@pytest.mark.parametrize("text", ["k", "=1", ""])
def test_overrides_must_assign(text: str) -> None:
    with pytest.raises(InputError, match="`--set` must read name=value"):
        parse_overrides([text])
    with pytest.raises(InputError, match="'k' twice"):
        parse_overrides(["k=1", "k=2"])
