"""Several trials a card, on nodes with pretended cards of two sizes: Ray keeps to what each trial is said to take.

How much that is, of which card, is in tests/unit/tune/test_resources.py.
"""

from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from alast_tune.config import SweepConfig
from alast_tune.tune.resources import CARD_LABEL, Packing, Request, cluster_nodes, placement
from tests.integration.harness import PATIENCE, added

GIB = 2**30


def card(size: int) -> dict[str, Any]:
    return {"num_cpus": 4, "num_gpus": 1, "labels": {CARD_LABEL: str(size)}}


def place_for(request: Request) -> PlacementGroup:
    """Ask for a trial's place as Tune does."""
    return placement({"resources": request}).to_placement_group()


def place_of(group: PlacementGroup) -> str | None:
    """The node that a trial's place is on; None while it waits for one."""
    (node,) = placement_group_table(group)["bundles_to_node_id"].values()
    return node or None


@pytest.mark.slow
def test_trials_share_cards_wait_for_one_that_is_taken_and_go_where_a_new_one_comes(ray_here: Cluster) -> None:
    sweep = SweepConfig.model_validate({"space": {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}})

    with added(ray_here, **card(16)) as small, added(ray_here, **card(64)) as big:
        packing = Packing(sweep, cluster_nodes(sweep))
        requests = {peak: packing.place(peak * GIB) for peak in (2, 6, 40, 30, 0)}
        assert sum(requests[peak]["gpu"] for peak in (2, 6, 0)) <= 1 < requests[40]["gpu"] + requests[30]["gpu"]
        groups = {peak: place_for(request) for peak, request in requests.items()}
        try:
            for peak in (2, 6, 40, 0):
                assert groups[peak].wait(PATIENCE)
            assert {peak: place_of(group) for peak, group in groups.items()} == {
                2: small.node_id,
                6: small.node_id,
                40: big.node_id,
                30: None,  # neither fits beside the third, nor on the small card; the last one need not wait for it
                0: small.node_id,
            }
            remove_placement_group(groups.pop(40))
            assert groups[30].wait(PATIENCE) and place_of(groups[30]) == big.node_id
            remove_placement_group(groups.pop(30))

            # As on spot machines: a card is lost, another comes, and nobody has told the driver of it.
            ray_here.remove_node(big, allow_graceful=False)
            groups[30] = place_for(requests[30])
            with added(ray_here, **card(64)) as later:
                assert groups[30].wait(PATIENCE) and place_of(groups[30]) == later.node_id
        finally:
            for group in groups.values():
                remove_placement_group(group)
