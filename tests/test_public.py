"""What a user relies on: the names, the README's code, a light import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stepcredit as sc
from stepcredit.batch import ScoredSpan

ROOT = Path(__file__).parents[1]


def test_public_names() -> None:
    schemes = "GRPO DrGRPO RLOO REINFORCEpp GDPO PAPO GRPOProcess PRIME PASS SPRO"
    promised = f"RolloutBatch Rollouts Credit OPD GOPD LogRatio functional StepCreditError InputError {schemes}"
    assert set(sc.__all__) >= {*promised.split(), "MissingExtraError"}
    assert all(hasattr(sc, name) for name in sc.__all__)
    assert all(hasattr(sc.functional, name) for name in sc.functional.__all__)


def test_the_error_tree() -> None:
    assert issubclass(sc.InputError, (sc.StepCreditError, ValueError))
    assert issubclass(sc.MissingExtraError, sc.StepCreditError)
    assert issubclass(sc.MissingExtraError, ImportError)
    assert "pip install 'stepcredit[data]'" in str(sc.MissingExtraError("pyarrow", "data", "read Parquet"))


def test_the_readmes_trainer_trains(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from trl_trainer import make_trainer

    class Longer:
        name, unit, requires = "longer", "characters", frozenset({"steps"})

        def score(self, rollouts: sc.Rollouts) -> list[list[ScoredSpan]]:
            return [[ScoredSpan(*step, float(step.end - step.start)) for step in steps] for steps in rollouts.steps]

    (block,) = [block for block in _blocks() if "attach" in block]
    trainer = make_trainer(tmp_path, max_steps=1)
    exec(compile(block, "README.md", "exec"), {"trainer": trainer, "my_signal": Longer()})
    trainer.train()
    assert trainer.state.log_history[0]["credit/process/share"] > 0


def test_the_readmes_code_runs() -> None:
    blocks = [block for block in _blocks() if "attach" not in block]
    assert blocks
    for block in blocks:
        scope: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), scope)
        credit = scope["credit"]
        assert isinstance(credit, sc.Credit)
        assert credit.advantages.shape[0] == 2
        assert credit.advantages.any()


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_import_needs_torch_and_numpy_alone() -> None:
    heavy = ("transformers", "datasets", "pyarrow", "math_verify", "trl", "peft")
    code = f"import sys, torch, stepcredit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["README.md", "docs/papers.md", "docs/glossary.md", "docs/training.md", "CONTRIBUTING.md"]
)
def test_documents_name_what_exists(name: str) -> None:
    """Every `functional.x`, `sc.X` and linked file in the documents is there."""
    text = (ROOT / name).read_text()
    for attribute in re.findall(r"functional\.(\w+)", text):
        assert hasattr(sc.functional, attribute), attribute
    for attribute in re.findall(r"\bsc\.(\w+)", text):
        assert hasattr(sc, attribute), attribute
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link
