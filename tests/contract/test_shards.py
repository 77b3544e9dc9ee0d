"""Groups split over processes get one process's credit, for every estimator."""

import socket
import time

import pytest
import torch.multiprocessing as mp

from shard_worker import compare


@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_equal_the_whole(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = mp.spawn(compare, args=(ranks, port), nprocs=ranks, join=False)
    deadline = time.monotonic() + 240
    while not context.join(timeout=5):  # returns False at each rank's end, raises at a rank's error
        assert time.monotonic() < deadline, "a rank did not finish"
