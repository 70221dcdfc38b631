"""Fronts drawn over one another."""

from alast_tune.plots import fronts_html
from alast_tune.results import Region
from tests.unit.fronts import front


def test_a_hypervolume_that_is_not_known_yet_is_not_drawn_as_none() -> None:
    unknown = {"hypervolume": None, "hypervolume_share": None}
    pending = front().model_copy(update=unknown | {"region": Region(source="pending", within=0.05)})
    page = fronts_html([pending])
    assert "(hypervolume not known yet)" in page and "(hypervolume 0" not in page
    assert "(hypervolume 0" in fronts_html([front()])
