"""Which version of a registered model an alias stays with."""

import pytest

from alast_tune.tracking.registry import ALL_DATA, COMPARED_DATA, SCORE, why_not_better

OLD = {COMPARED_DATA: "ab12", "alast.accuracy": "0.9", "alast.test_accuracy": "0.8"}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ({}, {"alast.accuracy": "0.95"}, ""),
        ({}, {}, ""),  # as good
        ({}, {"alast.accuracy": "0.85"}, "its validation accuracy is 0.9000, not 0.8500"),
        ({}, {COMPARED_DATA: "cd34"}, "its accuracy is not known to be on the same images"),
        # Who has trained on the validation images is no better on them.
        ({}, {ALL_DATA: "true", "alast.accuracy": "1.0", "alast.test_accuracy": "0.81"}, ""),
        (
            {},
            {ALL_DATA: "true", "alast.accuracy": "1.0", "alast.test_accuracy": "0.7"},
            "its test accuracy is 0.8000, not 0.7000",
        ),
        ({}, {SCORE: "macro_f1", "alast.macro_f1": "0.99"}, "it was chosen by its accuracy, not by its macro F1"),
        ({ALL_DATA: "true"}, {"alast.test_accuracy": ""}, "there is no test accuracy of both to compare"),
    ],
)
def test_a_version_takes_an_alias_if_it_is_as_accurate_on_images_that_neither_has_seen(
    old: dict[str, str], new: dict[str, str], why: str
) -> None:
    assert why_not_better(OLD | old, OLD | new) == why


def test_a_version_of_unknown_images_keeps_its_alias() -> None:
    assert why_not_better({}, OLD) == "its accuracy is not known to be on the same images"


def test_versions_chosen_by_the_same_measure_are_compared_by_it() -> None:
    old = {COMPARED_DATA: "ab12", SCORE: "macro_f1", "alast.accuracy": "0.9", "alast.macro_f1": "0.5"}
    assert why_not_better(old, old | {"alast.accuracy": "0.8", "alast.macro_f1": "0.6"}) == ""
    worse = why_not_better(old, old | {"alast.macro_f1": "0.4", "alast.accuracy": "0.99"})
    assert worse == "its validation macro F1 is 0.5000, not 0.4000"
