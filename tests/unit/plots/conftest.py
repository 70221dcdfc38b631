"""Pictures, for the tests of several plots."""

import pytest

from tests.unit.plots.figures import Pictures


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """Draw small, and keep what is drawn."""
    return Pictures(monkeypatch)
