"""Plain batches in verl's shape: shuffled rows, rollouts of several rows, padding rows, reward workers' packages."""

import json
import random
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto

from stepcredit.adapters.verl.arriving import Brought
from strategies import plain_batch

NAN = float("nan")


def verl_batch(seed: int, *, split: bool = True, padding: bool = True) -> tuple[dict[str, Any], "Shaped"]:
    """A plain batch that verl could have made, and the same as verl has it."""
    rng = random.Random(seed)
    plain = _possible(plain_batch(seed, step_mode=True), rng)
    pieces = []  # (rollout, place in it, its tokens)
    for i, mask in enumerate(plain["mask"]):
        cuts = sorted(rng.sample(range(1, len(mask)), min(rng.randint(0, 2), len(mask) - 1))) if split else []
        for place, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(mask)], strict=True)):
            pieces.append((i, place, range(start, end)))
        _renumber(plain["step_ids"][i], [0, *cuts])
    rng.shuffle(pieces)
    return plain, Shaped(plain, pieces, rng.randint(1, 3) if padding else 0)


def _possible(plain: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """verl computes in float32, knows no row mask but a reward of nan, and no format verdict but a threshold."""
    live = [any(mask) and (plain["row_mask"] is None or plain["row_mask"][i]) for i, mask in enumerate(plain["mask"])]
    narrow = lambda row: torch.tensor(row, dtype=torch.float64).float().double().tolist()  # noqa: E731
    plain["rewards"] = [x if on else NAN for x, on in zip(narrow(plain["rewards"]), live, strict=True)]
    plain["row_mask"] = live
    for name in ("process", "old", "ref"):
        plain[name] = [narrow(row) for row in plain[name]]
    if plain["process_mask"] is not None:
        pairs = zip(plain["step_ids"], plain["process_mask"], strict=True)
        plain["step_ids"] = [[s if on else -1 for s, on in zip(*pair, strict=True)] for pair in pairs]
        plain["process_mask"] = None
    plain["step_ids"] = [
        [s if on else -1 for s, on in zip(steps, mask, strict=True)]
        for steps, mask in zip(plain["step_ids"], plain["mask"], strict=True)
    ]
    plain["format_rewards"] = narrow(plain["format_rewards"])
    plain["format_ok"] = [x >= 0.25 for x in plain["format_rewards"]]
    if plain["extra_rewards"]:
        plain["extra_rewards"] = {name: narrow(x) for name, x in plain["extra_rewards"].items()}
    del rng
    return plain


def _renumber(steps: list[int], starts: list[int]) -> None:
    """A step that two rows share is two steps."""
    names: dict[tuple[int, int], int] = {}
    for t, step in enumerate(steps):
        if step >= 0:
            row = max(k for k, start in enumerate(starts) if start <= t)
            steps[t] = names.setdefault((row, step), len(names))


class Shaped:
    """Columns of verl, and the way back.

    Attributes:
        data: What verl's dispatcher is given.
        keys: verl's keys of the rows.
        brought: What a trainer with credit brings.
    """

    def __init__(self, plain: dict[str, Any], pieces: list[tuple[int, int, range]], padding: int) -> None:
        self.plain, self.pieces = plain, pieces
        rows, time = len(pieces) + padding, max(len(tokens) for _, _, tokens in pieces)
        columns = {name: torch.full((rows, time), NAN) for name in ("old_log_probs", "ref_log_prob")}
        columns["response_mask"] = torch.zeros(rows, time, dtype=torch.int64)
        columns["token_level_scores"] = torch.zeros(rows, time)
        lasts = {i: max(place for j, place, _ in pieces if j == i) for i, _, _ in pieces}
        uids, self.keys, packages = [], [], []
        for row, (i, place, tokens) in enumerate(pieces):
            for at, t in enumerate(tokens):
                columns["response_mask"][row, at] = int(plain["mask"][i][t])
                columns["old_log_probs"][row, at] = plain["old"][i][t]
                columns["ref_log_prob"][row, at] = plain["ref"][i][t]
            columns["token_level_scores"][row, len(tokens) - 1] = plain["rewards"][i]  # copied to each of its rows
            uids.append(f"prompt {plain['group'][i]}")
            self.keys.append(f"{uids[-1]}_{i}_{place}")
            packages.append(json.dumps(self._package(i, tokens, place == lasts[i])))
        for row in range(padding):
            uids.append("padfeed")
            self.keys.append(f"padfeed_{row}_0")
            packages.append(packages[0])
        columns["token_level_rewards"] = columns["token_level_scores"]
        self.data = DataProto(
            batch=TensorDict(columns, batch_size=rows), non_tensor_batch={"uid": np.array(uids, dtype=object)}
        )
        sessions = [(key.rpartition("_")[0], int(key.rpartition("_")[2])) for key in self.keys]
        self.brought = Brought(sessions=sessions, packages=packages, step=1)

    def _package(self, i: int, tokens: range, last: bool) -> dict[str, Any]:
        plain, runs = self.plain, []
        begun = min((plain["step_ids"][i][t] for t in tokens if plain["step_ids"][i][t] >= 0), default=0)
        for at, t in enumerate(tokens):
            step = plain["step_ids"][i][t]
            if step >= 0 and plain["row_mask"][i]:
                runs.append([step - begun, at, at + 1, plain["process"][i][t]])
        package: dict[str, Any] = {"steps": runs}
        if last and plain["row_mask"][i]:
            package["format"] = plain["format_rewards"][i]
            if plain["correct"]:
                package["correct"] = plain["correct"][i]
            if plain["extra_rewards"]:
                package["extra"] = {name: x[i] for name, x in plain["extra_rewards"].items()}
        elif last:  # a reward function that cannot score a rollout still says something of its form
            package |= {"format": 0.0, "correct": False} if plain["correct"] else {"format": 0.0}
            package["extra"] = dict.fromkeys(plain["extra_rewards"] or {}, 0.0)
        return package

    def rows(self, credit: list[list[float]]) -> torch.Tensor:
        """Credit of the plain batch, as [rows, time] of verl's."""
        out = torch.zeros(self.data.batch["response_mask"].shape, dtype=torch.float64)
        for row, (i, _, tokens) in enumerate(self.pieces):
            out[row, : len(tokens)] = torch.tensor([credit[i][t] for t in tokens], dtype=torch.float64)
        return out
