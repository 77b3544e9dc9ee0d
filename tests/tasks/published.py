"""Published data sets next to the project, for the tests that measure on all of them."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data"


def published(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"published data is absent: ../shared/data/{name}")
    return path
