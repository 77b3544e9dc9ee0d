"""The files that verl reads of a run: its problems as Parquet, and where its agent loop is."""

import json
from pathlib import Path

from stepcredit.config.run import RunConfig
from stepcredit.errors import InputError
from stepcredit.runs.verl.overrides import prompts_a_step
from stepcredit.runs.verl.tasks import LOOP, run_protocol, run_task
from stepcredit.tasks import Example

_LOOP_CLASS = "stepcredit.runs.verl.loop.TaskLoop"


def write_files(config: RunConfig, folder: Path) -> int:
    """Writes ``verl/train.parquet``, ``verl/val.parquet`` and ``verl/loops.yaml`` into a run directory.

    Args:
        config: The run's; its ``config.toml`` is in the folder already.
        folder: The run directory, as an absolute path.

    Returns:
        The tokens of the longest prompt: verl drops what is longer than it was told, and says so in its log alone.

    Raises:
        InputError: Fewer problems than one step takes.
    """
    task = run_task(str(folder / "config.toml"))
    prompts = prompts_a_step(config)
    count = config.run.train_examples
    if count is None and task.endless:
        count = prompts * config.run.steps
    examples = task.examples("train", count, seed=config.run.seed)
    if len(examples) < prompts:
        raise InputError(f"`task` must have the {prompts} problems of a step; got {len(examples)}.")
    (folder / "verl").mkdir(exist_ok=True)
    _write(examples, folder / "verl" / "train.parquet")
    _write(examples[:1], folder / "verl" / "val.parquet")  # verl opens it in any case; evaluation is the run's own
    loops = [{"name": LOOP, "_target_": _LOOP_CLASS, "config": str(folder / "config.toml")}]
    (folder / "verl" / "loops.yaml").write_text(json.dumps(loops), encoding="utf-8")  # JSON is YAML
    protocol = run_protocol(str(folder / "config.toml"))
    return max(len(protocol.prompt(example.prompt)) for example in examples)


def _write(examples: list[Example], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "data_source": "stepcredit",
            "prompt": [{"role": "user", "content": example.prompt}],
            "reward_model": {"style": "rule", "ground_truth": example.reference},
            "extra_info": {"index": index, "id": example.id},
        }
        for index, example in enumerate(examples)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
