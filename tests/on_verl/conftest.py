"""verl's modules warn, as they are imported, of engines and libraries that a small run does without."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        r"ignore:\w+ engine is not available:UserWarning:verl",
        "ignore::DeprecationWarning:ray",
        "ignore::FutureWarning:ray",
    ):
        config.addinivalue_line("filterwarnings", line)
