"""How well a classifier does: measures of quality, all from one confusion matrix; defined as scikit-learn's.

K classes; C_KK[t, p] counts the images of class t that are taken for class p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Score = Literal["accuracy", "balanced_accuracy", "macro_f1"]
"""A measure that may be the objective of a sweep (``train.score``)."""

SCORES: dict[Score, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}
"""As people read them."""


def score_label(name: str) -> str:
    """Name a measure to people; one that another version has written stands for itself."""
    return {str(score): label for score, label in SCORES.items()}.get(name, name)


TOP = 5
"""Top-5 accuracy is known of models of more classes than that."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model has answered on some images.

    Classes without images count as in scikit-learn: not in balanced accuracy (``balanced_accuracy_score``), and in
    macro F1 (``f1_score(average="macro")``) only if some image was taken for one, with an F1 of 0.
    """

    confusion_KK: NDArray[np.int64]
    """Images by their class (row) and by the class that they are taken for (column)."""
    loss: float
    """Mean cross-entropy, without weights of classes."""
    top5: float | None = None
    """Share of images whose class is among the five most probable ones; None of fewer than six classes."""

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self.confusion_KK.sum())

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return int(self.confusion_KK.trace()) / self.images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        images_K = self.confusion_KK.sum(axis=1)
        return float((self.confusion_KK.diagonal() / images_K.clip(1))[images_K > 0].mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images, or for which an image was taken."""
        either_K = self.confusion_KK.sum(axis=1) + self.confusion_KK.sum(axis=0)
        return float((2 * self.confusion_KK.diagonal() / either_K.clip(1))[either_K > 0].mean())

    def score(self, name: Score) -> float:
        """Give one of these three."""
        value: float = getattr(self, name)
        return value

    def metrics(self) -> dict[str, float]:
        """List the measures by name, without those that are not known."""
        found = {name: self.score(name) for name in SCORES} | {"loss": self.loss}
        return {**found, **({} if self.top5 is None else {"top5": self.top5})}

    def table(self, classes: tuple[str, ...] | list[str] | None = None) -> list[dict[str, str | int | float]]:
        """List each class with its images, precision, recall and F1; 0 where there is nothing to divide by.

        Args:
            classes: names of the first of the K classes, at least; unset: their numbers.
        """
        right_K = self.confusion_KK.diagonal()
        images_K, taken_K = self.confusion_KK.sum(axis=1), self.confusion_KK.sum(axis=0)
        precision_K, recall_K = right_K / taken_K.clip(1), right_K / images_K.clip(1)
        f1_K = 2 * right_K / (images_K + taken_K).clip(1)
        names = [*(classes or ()), *map(str, range(len(classes or ()), len(right_K)))]
        return [
            {
                "class": names[k],
                "images": int(images_K[k]),
                "precision": float(precision_K[k]),
                "recall": float(recall_K[k]),
                "f1": float(f1_K[k]),
            }
            for k in range(len(right_K))
        ]
