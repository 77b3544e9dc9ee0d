"""A training run's settings: a TOML file or a recipe, what it extends, and overrides; checked before any work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from stepcredit.config.build import build_estimator, build_signal, build_task, hint
from stepcredit.config.tables import Table, overridden, parse_tables, read_tables
from stepcredit.errors import InputError
from stepcredit.options import Options, option
from stepcredit.signals import Guard

TASK_STEPS = "task_steps"
"""The signal that is the task's own ground truth for every step, where it has one."""


@dataclass(frozen=True)
class Run(Options):
    """The ``[run]`` table.

    Attributes:
        steps: Optimizer steps.
        seed: Chooses problems, samples and initial adapters.
        checkpoint_every: Steps from one checkpoint to the next; a killed run resumes from the last.
        keep_checkpoints: How many of the newest stay on disk.
        rollouts_every: Steps from one stored batch of rollouts to the next, the first and last step included; 0: none.
        rollouts_kept: Rollouts of the batch that are stored, its first ones; whole groups are easier to read.
        kl_every: Steps from one measured KL to the reference to the next; 0: only where it comes free.
        train_examples: Training problems; None: all, or as many as the run consumes where the task never ends.
        sampler: "trl": however TRL generates; "grouped": plain sampling that reads a group's prompt once, for small
            policies without vLLM.
        report_to: Also log to these, comma-separated: trackio, wandb, tensorboard.
        engine: Whose trainer trains: "trl", in this process; or "verl", on Ray.
    """

    steps: int = option(100, at_least=1)
    seed: int = option(0, at_least=0)
    checkpoint_every: int = option(50, at_least=1)
    keep_checkpoints: int = option(2, at_least=1)
    rollouts_every: int = option(10, at_least=0)
    rollouts_kept: int = option(32, at_least=1)
    kl_every: int = option(10, at_least=0)
    train_examples: int | None = option(None, at_least=1)
    sampler: Literal["trl", "grouped"] = "trl"
    report_to: str = ""
    engine: Literal["trl", "verl"] = "trl"


@dataclass(frozen=True)
class Model(Options):
    """The ``[policy]``, ``[teacher]``, ``[base]`` and ``[reference]`` tables.

    Attributes:
        name: A built-in name, a local folder or a hub name; with a url, what the server calls it.
        dtype: The weights' dtype by torch's name; None for what the folder says.
        trust_remote_code: Run code that the model's repository brings along.
        url: Where the model is served, for a teacher or a base model; None: it is loaded here.
        token_env: The environment variable that holds the server's bearer token; None: none is sent.
    """

    name: str = ""
    dtype: str | None = None
    trust_remote_code: bool = False
    url: str | None = None
    token_env: str | None = None


@dataclass(frozen=True)
class Evaluation(Options):
    """The ``[evaluation]`` table: pass@1 after the last step, and before the first.

    Attributes:
        problems: Test problems; 0 evaluates nothing.
        before: Also before the first step.
        samples: Sampled answers a problem, beside the greedy one.
        batch_size: Answers generated at a time; the numbers do not depend on it.
        seed: Chooses the samples.
    """

    problems: int = option(0, at_least=0)
    before: bool = True
    samples: int = option(1, at_least=1)
    batch_size: int = option(64, at_least=1)
    seed: int = option(0, at_least=0)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a training run is made from, checked.

    Attributes:
        run: Length, seed, checkpoints, logs.
        policy: The model that is trained.
        lora: Options of a LoRA adapter by peft's names; empty: all weights are trained.
        task: ``type`` and the task's options.
        estimator: ``type`` and the scheme's options.
        signal: ``type`` and the signal's options, ``steps``: how a text signal's steps are cut; empty: none.
        guard: Options of the `Guard` between the signal and the credit; empty: none.
        models: The frozen models beside the policy, by role: teacher, base, reference.
        trainer: Fields of TRL's ``GRPOConfig`` by their names there.
        credit: Further arguments of the TRL adapter's `attach`: format_threshold, gspo_token.
        verl: Settings of verl's own config by their names there, in nested tables; they win over all others.
        evaluation: What is measured before and after.
    """

    run: Run
    policy: Model
    task: Table
    estimator: Table
    signal: Table = field(default_factory=dict)
    guard: Table = field(default_factory=dict)
    lora: Table = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    trainer: Table = field(default_factory=dict)
    credit: Table = field(default_factory=dict)
    verl: Table = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def tables(self) -> dict[str, Table]:
        """The settings as the tables of a config file; `resolve` of them gives this config again."""
        tables = {
            "run": asdict(self.run), "policy": {**asdict(self.policy), **({"lora": self.lora} if self.lora else {})},
            "task": self.task, "signal": self.signal, "guard": self.guard, "estimator": self.estimator,
            **{role: asdict(model) for role, model in self.models.items()},
            "trainer": self.trainer, "credit": self.credit, "verl": self.verl, "evaluation": asdict(self.evaluation),
        }  # fmt: skip
        return {name: _without_none(table) for name, table in tables.items() if table}


def load_config(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads a recipe by name or a TOML file, with what it extends, then applies overrides and checks the result.

    Args:
        name_or_path: A recipe's name (see `recipes`) or the path of a TOML file. ``extends = "..."`` at its top names
            another recipe, or a file beside it, whose tables come first; a list of them is laid one on the other.
        overrides: ``table.key`` -> value, as `parse_overrides` gives them.

    Raises:
        InputError: No such file or recipe, no TOML, an unknown table or key (the nearest name is given), a value out
            of its range.

    Example:
        >>> load_config("demo-pass", {"estimator.k": 1.0}).estimator["k"]
        1.0
    """
    tables = overridden(read_tables(name_or_path), overrides or {})
    return resolve(tables)


def parse_config(text: str) -> RunConfig:
    """The config of a file's text, as a run directory keeps it; see `load_config`."""
    return resolve(parse_tables(text, "config.toml"))


def run_config(folder: str | Path) -> RunConfig:
    """The config that a run directory keeps.

    Raises:
        InputError: There is no run.
    """
    path = Path(folder) / "config.toml"
    if not path.is_file():
        raise InputError(f"`run` must be a run directory; {str(folder)!r} has no config.toml.")
    return parse_config(path.read_text(encoding="utf-8"))


def dump_config(config: RunConfig) -> str:
    """The config as TOML, every setting written out; `parse_config` reads it back."""
    import tomli_w

    text: str = tomli_w.dumps(config.tables())
    return text


def resolve(tables: Mapping[str, Any]) -> RunConfig:
    """Checks tables and makes a config of them; estimator, signal and task are built once to hold their options."""
    known = (*_TABLES, *_ROLES)
    for name, table in tables.items():
        if name not in known:
            raise InputError(f"`{name}` must be a table of a run's config{hint(name, known)}")
        if not isinstance(table, dict):
            raise InputError(f"`{name}` must be a table; got {table!r}.")
    for name in ("policy", "task", "estimator"):
        if not tables.get(name):
            raise InputError(f"`{name}` must be in the config; got none.")
    policy = dict(tables["policy"])
    lora = policy.pop("lora", {})
    signal = dict(tables.get("signal", {}))
    if signal:
        name, options = typed("signal", signal)
        steps = {"steps": options.pop("steps")} if "steps" in options else {}
        if name != TASK_STEPS:
            signal = {**_written_out(name, build_signal(name, options)), **steps}
        elif options:
            raise InputError(f"`signal.{next(iter(options))}` must not be given: {TASK_STEPS} has no options.")
    config = RunConfig(
        run=_section("run", Run, tables.get("run", {})),
        policy=_section("policy", Model, policy),
        lora=dict(lora),
        task=_written_out(tables["task"].get("type"), build_task(*typed("task", tables["task"]))),
        estimator=_written_out(
            tables["estimator"].get("type"), build_estimator(*typed("estimator", tables["estimator"]))
        ),
        signal=signal,
        guard=_options(_section("guard", Guard, tables["guard"])) if tables.get("guard") else {},
        models={role: _section(role, Model, tables[role]) for role in _ROLES if role in tables},
        trainer=dict(tables.get("trainer", {})),
        credit=dict(tables.get("credit", {})),
        verl=dict(tables.get("verl", {})),
        evaluation=_section("evaluation", Evaluation, tables.get("evaluation", {})),
    )
    _check_together(config)
    return config


def _check_together(config: RunConfig) -> None:
    """Refuses tables that do not go with each other, and names of nothing."""
    if config.verl and config.run.engine != "verl":
        raise InputError(f"`verl` must come with run.engine = 'verl'; got {config.run.engine!r}.")
    if config.guard and not config.signal:
        raise InputError("`guard` must come with a signal; got none in the config.")
    for role in ("policy", "reference"):
        served = config.policy if role == "policy" else config.models.get(role, Model())
        if served.url is not None:
            raise InputError(f"`{role}.url` must not be given: only a teacher or a base model can be served.")
    for role, model in {"policy": config.policy, **config.models}.items():
        if not model.name:
            raise InputError(f"`{role}.name` must name a model; got an empty name.")
    for key in config.credit:
        if key not in _CREDIT:
            raise InputError(f"`credit.{key}` must be a setting of the adapter{hint(key, _CREDIT)}")


_TABLES = ("run", "policy", "task", "signal", "guard", "estimator", "trainer", "credit", "verl", "evaluation")
_ROLES = ("teacher", "base", "reference")
_CREDIT = ("format_threshold", "gspo_token")


def _section(name: str, kind: type[Any], table: Any) -> Any:
    keys = [f.name for f in fields(kind)]
    for key in table:
        if key not in keys:
            raise InputError(f"`{name}.{key}` must be a key of [{name}]{hint(key, keys)}")
    return kind(**table)


def typed(kind: str, table: Table) -> tuple[str, Table]:
    """The type's name and the options of a table; ``kind`` names the table in errors."""
    options = dict(table)
    name = options.pop("type", None)
    if not isinstance(name, str):
        raise InputError(f"`{kind}.type` must name a {kind}; got {name!r}.")
    return name, options


def _written_out(name: str, made: Any) -> Table:
    """The table of something built, every option with its value, so that a later default cannot change a run."""
    return {"type": name, **_options(made)}


def _options(made: Any) -> Table:
    options = {f.name: getattr(made, f.name) for f in fields(made) if f.init} if is_dataclass(made) else {}
    return _without_none(options)


def _without_none(table: Table) -> Table:
    """TOML has no null: a setting that is None is left out."""
    return {key: value for key, value in table.items() if value is not None}
