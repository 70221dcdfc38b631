"""Front mathematics against closed forms and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from alast_tune.front import (
    dominating,
    front_probability,
    hypervolume,
    hypervolume_contributions,
    hypervolume_share,
    knee,
    pareto_mask,
    pareto_rank,
)

UP_DOWN = ("maximize", "minimize")
UP_DOWN_DOWN = ("maximize", "minimize", "minimize")
DIRECTION = st.sampled_from(["maximize", "minimize"])


@st.composite
def clouds(draw, max_points=12, min_points=0):
    """Points on a coarse grid, so that ties and duplicates are common."""
    objectives = draw(st.integers(1, 4))
    shape = (draw(st.integers(min_points, max_points)), objectives)
    values = draw(arrays(np.float64, shape, elements=st.integers(0, 4).map(float)))
    return values, draw(st.lists(DIRECTION, min_size=objectives, max_size=objectives))


def dominates(one, other, directions):
    better = [a > b if way == "maximize" else a < b for a, b, way in zip(one, other, directions, strict=True)]
    worse = [a < b if way == "maximize" else a > b for a, b, way in zip(one, other, directions, strict=True)]
    return any(better) and not any(worse)


def brute_mask(values, directions):
    return np.array([not any(dominates(other, one, directions) for other in values) for one in values], dtype=bool)


@given(clouds(min_points=1), st.data())
def test_those_that_dominate_one_equal_brute_force(cloud, data):
    values, directions = cloud
    row = data.draw(st.integers(0, len(values) - 1))
    expected = [dominates(other, values[row], directions) for other in values]
    assert dominating(values, row, directions).tolist() == expected


@given(clouds())
def test_mask_equals_brute_force(cloud):
    values, directions = cloud
    assert pareto_mask(values, directions).tolist() == brute_mask(values, directions).tolist()


@given(clouds())
def test_rank_peels_brute_force_fronts(cloud):
    values, directions = cloud
    expected = np.full(len(values), -1)
    rank = 0
    while (expected < 0).any():
        left = np.flatnonzero(expected < 0)
        expected[left[brute_mask(values[left], directions)]] = rank
        rank += 1
    assert pareto_rank(values, directions).tolist() == expected.tolist()


@given(clouds(max_points=6))
def test_hypervolume_equals_the_cells_counted(cloud):
    """On an integer grid the volume is the number of unit cells that some point dominates."""
    values, directions = cloud
    losses = values * np.array([-1 if way == "maximize" else 1 for way in directions])
    reference = np.full(len(directions), 3.0)
    low = int(losses.min(initial=0))
    corners = np.stack(np.meshgrid(*[np.arange(low, 3)] * len(directions), indexing="ij"), -1)
    covered = np.zeros(corners.shape[:-1], dtype=bool)
    for point in losses:
        covered |= (point <= corners).all(axis=-1)
    signed = reference * np.array([-1 if way == "maximize" else 1 for way in directions])
    assert hypervolume(values, signed, directions) == pytest.approx(covered.sum())


def test_weak_duplicates_all_stay():
    assert pareto_mask([[0.9, 1.0], [0.9, 1.0], [0.9, 2.0]], UP_DOWN).tolist() == [True, True, False]


def test_hypervolume_closed_forms():
    assert hypervolume([[0.5, 4.0]], [0.0, 10.0], UP_DOWN) == pytest.approx(0.5 * 6)
    assert hypervolume([[0.5, 4.0], [0.8, 7.0]], [0.0, 10.0], UP_DOWN) == pytest.approx(0.5 * 6 + 0.3 * 3)
    cube = [[0.5, 1.0, 2.0]]
    assert hypervolume(cube, [0.0, 4.0, 5.0], UP_DOWN_DOWN) == pytest.approx(0.5 * 3 * 3)
    # Two boxes of 2 x 1 x 1 and 1 x 2 x 1 that share a unit cube.
    assert hypervolume([[2.0, 3.0, 3.0], [1.0, 2.0, 3.0]], [0.0, 4.0, 4.0], UP_DOWN_DOWN) == pytest.approx(3.0)


def test_hypervolume_of_a_simplex_of_points():
    """n points on a line: the staircase sum, 1/2 (1 - 1/n)."""
    n = 50
    points = [[i / n, 1 - i / n] for i in range(n + 1)]
    assert hypervolume(points, [1.0, 1.0], ("minimize", "minimize")) == pytest.approx(0.5 * (1 - 1 / n))


@pytest.mark.parametrize("points", [[], [[0.0, 1.0]], [[0.9, 10.0]], [[0.9, 11.0]], [[-0.1, 1.0]]])
def test_what_does_not_beat_the_reference_adds_nothing(points):
    assert hypervolume(points, [0.0, 10.0], UP_DOWN) == 0.0
    assert hypervolume([*points, [0.5, 4.0]], [0.0, 10.0], UP_DOWN) == pytest.approx(3.0)


def test_share_holds_its_digits_at_the_scale_of_a_sweep():
    reference, ideal = [0.0, 8e15, 6e9], [1.0, 0.0, 0.0]
    assert hypervolume_share([[0.8, 2e15, 3e9]], reference, ideal, UP_DOWN_DOWN) == pytest.approx(0.8 * 0.75 * 0.5)
    assert hypervolume_share([ideal], reference, ideal, UP_DOWN_DOWN) == 1.0
    assert hypervolume_share([[1.5, -1.0, -1.0]], reference, ideal, UP_DOWN_DOWN) == 1.0
    assert hypervolume_share([reference], reference, ideal, UP_DOWN_DOWN) == 0.0
    assert hypervolume_share([], reference, ideal, UP_DOWN_DOWN) == 0.0


@given(clouds())
def test_share_is_the_hypervolume_over_the_box(cloud):
    values, directions = cloud
    reference = [-1.0 if way == "maximize" else 5.0 for way in directions]
    ideal = [4.0 if way == "maximize" else 0.0 for way in directions]
    expected = hypervolume(values, reference, directions) / 5.0 ** len(directions)
    share = hypervolume_share(values, reference, ideal, directions)
    assert share == pytest.approx(expected)
    assert 0 <= share <= 1


def test_contributions_are_what_is_lost_without_each():
    values = np.array([[0.9, 2.0], [0.5, 1.0], [0.4, 3.0], [0.7, 1.2], [0.7, 1.2]])
    found = hypervolume_contributions(values, UP_DOWN)
    unit = np.c_[(values[:, 0] - 0.4) / 0.5, (values[:, 1] - 1.0) / 2.0]
    whole = hypervolume(unit, [-0.1, 1.1], UP_DOWN)
    lost = [whole - hypervolume(np.delete(unit, row, axis=0), [-0.1, 1.1], UP_DOWN) for row in range(5)]
    assert found == pytest.approx(lost)
    assert list(found[2:]) == [0.0, 0.0, 0.0]
    assert hypervolume_contributions([[0.5, 1.0]], UP_DOWN) == pytest.approx([1.1**2])


def test_knee_is_the_compromise():
    points = [[0.90, 100.0], [0.88, 30.0], [0.50, 10.0], [0.40, 90.0]]
    assert knee(points, UP_DOWN) == 1


def test_knee_of_equals_is_the_first_and_a_shared_objective_adds_nothing():
    assert knee([[0.1, 5.0], [0.9, 1.0], [0.9, 1.0]], UP_DOWN) == 1
    assert knee([[0.0, 0.0], [1.0, 1.0]], UP_DOWN) == 0
    assert knee([[0.7, 3.0, 8.0], [0.9, 3.0, 5.0]], UP_DOWN_DOWN) == 1


@given(clouds(min_points=1), st.floats(0.01, 1e15))
def test_knee_lies_on_the_front_whatever_the_unit(cloud, unit):
    values, directions = cloud
    chosen = knee(values, directions)
    assert pareto_mask(values, directions)[chosen]
    assert knee(values * 2.0 ** round(np.log2(unit)), directions) == chosen


@pytest.mark.parametrize("function", [pareto_mask, pareto_rank, knee])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(function, bad):
    with pytest.raises(ValueError, match=r"rows \[1\] are not finite"):
        function([[0.5, 1.0], [bad, 1.0]], UP_DOWN)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 directions"):
        pareto_mask([[1.0, 2.0, 3.0]], UP_DOWN)
    with pytest.raises(ValueError, match="'maximize' or 'minimize'"):
        pareto_mask([[1.0]], ("max",))
    with pytest.raises(ValueError, match="must be better"):
        hypervolume_share([[0.5, 1.0]], [0.0, 1.0], [1.0, 1.0], UP_DOWN)
    with pytest.raises(ValueError, match="no points"):
        knee([], UP_DOWN)
    with pytest.raises(ValueError, match="not finite"):
        hypervolume([[0.5, 1.0]], [0.0, float("nan")], UP_DOWN)


def test_nothing_in_nothing_out():
    assert pareto_mask([], UP_DOWN).tolist() == []
    assert pareto_rank(np.empty((0, 2)), UP_DOWN).tolist() == []


def test_front_probability_of_two_points_is_students_t() -> None:
    means_TM, errors_TM, freedom = [[0.90], [0.88]], [[0.02], [0.01]], 4
    first, second = front_probability(means_TM, errors_TM, ["maximize"], freedom, np.random.default_rng(0), 20_000)
    exact = stats.t.cdf(0.02 / np.hypot(0.02, 0.01), freedom)
    assert first == pytest.approx(exact, abs=0.012)  # 3.5 standard errors
    assert first + second == pytest.approx(1.0)


def test_front_probability_without_noise_is_the_front_itself() -> None:
    values_TM = [[0.9, 2.0], [0.8, 1.0], [0.7, 1.5]]
    found = front_probability(values_TM, np.zeros((3, 2)), ["maximize", "minimize"], 1, np.random.default_rng(0), 50)
    assert found.tolist() == [1.0, 1.0, 0.0]


def test_a_cheaper_point_stays_whatever_the_noise() -> None:
    errors_TM = [[0.1, 0.0], [0.1, 0.0]]
    cheap, dear = front_probability(
        [[0.8, 1.0], [0.8, 2.0]], errors_TM, ["maximize", "minimize"], 6, np.random.default_rng(1)
    )
    assert cheap == 1.0 and dear == pytest.approx(0.5, abs=0.03)
