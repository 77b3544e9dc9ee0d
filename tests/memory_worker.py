"""Work whose memory is known, for a process of its own."""

from collections.abc import Callable


def filling(megabytes: int) -> Callable[[], None]:
    """Holds as many megabytes, twice, one after the other; 100 more were there before."""
    before = b"x" * 2**20 * 100

    def run() -> None:
        for start in range(2):
            held = b"x" * 2**20 * megabytes
            assert held[start] == before[start]
            del held

    return run
