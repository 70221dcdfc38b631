"""Who is taken for whom: names and numbers as long as there is room, shares of each class's images as colours."""

import numpy as np
import pytest

from alast_tune.plots import confusion_png
from tests.unit.plots.figures import Pictures, words


def test_a_row_is_a_class_in_shares_of_its_images(pictures: Pictures) -> None:
    confusion_KK = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 1]])
    figure = pictures.of(confusion_png("who", confusion_KK, ("cat", "$dog", "a name that is much too long 7")))
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.get_array().tolist() == [[75, 25, 0], [0, 0, 0], [50, 0, 50]]
    assert words(axes) == ["6", "2", "1", "1"]
    names = ["cat", "$dog", "a name tha… long 7"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "class")
    assert figure.axes[1].get_ylabel() == "% of the class's images"


@pytest.mark.parametrize(("classes", "named", "numbers"), [(25, 25, 25), (60, 60, 0), (200, 0, 0)])
def test_many_classes_lose_their_numbers_and_then_their_names(
    pictures: Pictures, classes: int, named: int, numbers: int
) -> None:
    figure = pictures.of(confusion_png("who", np.eye(classes, dtype=np.int64), [f"c{k}" for k in range(classes)]))
    axes = figure.axes[0]
    assert len([label for label in axes.get_yticklabels() if label.get_text().startswith("c")]) == named
    assert len(words(axes)) == numbers
    assert figure.pixels[1] <= 1800
