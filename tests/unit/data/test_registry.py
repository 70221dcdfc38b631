"""A data set of one's own, under a name: registered in this process, or by a package for all processes."""

import numpy as np
import pytest
import torch
from PIL import Image
from ray import cloudpickle
from torchvision.datasets import GTSRB, Caltech101, ImageFolder

from alast_tune import plugins
from alast_tune.config import DataConfig
from alast_tune.data import fingerprint, labels_of, num_classes_of, register_dataset
from alast_tune.errors import ConfigError
from alast_tune.tune.cluster import _worker_setup
from tests.unit.data.pictures import all_of, load, refusal


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No test sees what another has registered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plugins, "_HERE", {})


class Greys:
    """Images of one grey each; light ones are of class 1."""

    def __init__(self, count=30, first=0, **attributes):
        self.greys = np.arange(first, first + count) * 7 % 256
        self.targets = (self.greys > 127).astype(int)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.greys)

    def __getitem__(self, index):
        return Image.new("L", (8, 8), int(self.greys[index])), self.targets[index]


def test_it_is_data_like_any_other():
    register_dataset("greys", lambda root: Greys())
    splits = load("greys")
    assert splits.classes == ("0", "1")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 30
    assert num_classes_of(DataConfig(dataset="greys")) == 2
    mean = all_of(splits.train)[:, 0].mean((1, 2)) * 0.5 + 0.5
    assert torch.equal((mean * 255).round() > 127, splits.train.labels == 1)


def test_classes_of_torchvision_take_the_root(divided):
    register_dataset("pets", ImageFolder)
    splits = load("pets", root=divided / "train")
    assert splits.classes == ("ant", "bee")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 12


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # torchvision's, of Caltech101
@pytest.mark.parametrize(
    ("dataset", "folder", "names"),
    [
        (GTSRB, "gtsrb/GTSRB/Training", ("00000", "00001")),
        (Caltech101, "caltech101/101_ObjectCategories", ("ant", "bee", "BACKGROUND_Google")),
    ],
    ids=["beside the paths", "y"],
)
def test_classes_of_torchvision_may_have_labels_elsewhere(tmp_path, dataset, folder, names):
    for number, name in enumerate(names):
        (tmp_path / folder / name).mkdir(parents=True)
        for index in range(1, 31):
            file = tmp_path / folder / name / f"image_{index:04d}.{'ppm' if dataset is GTSRB else 'jpg'}"
            Image.new("RGB", (8, 8), (100 * number, 8 * index, 0)).save(file)
    register_dataset("signs", dataset)
    splits = load("signs", root=tmp_path)
    assert splits.classes == (("0", "1") if dataset is GTSRB else ("ant", "bee"))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 60
    assert torch.equal(splits.train.labels == 1, all_of(splits.train)[:, 0].mean((1, 2)) > -0.5)


def test_it_may_come_divided(divided):
    parts = ("train", "val", "test")
    register_dataset("pets", lambda root: {part: ImageFolder(root / part) for part in parts})
    ours, theirs = load("pets", root=divided), load("folder", root=divided)
    for name in ("train", "validation", "test"):
        assert torch.equal(all_of(getattr(ours, name)), all_of(getattr(theirs, name)))


def test_keys_keep_images_where_they_are():
    def where(**attributes):
        register_dataset("greys", lambda root: Greys(**attributes))
        splits = load("greys")
        parts = (splits.train, splits.validation, splits.test)
        return {key: index for index, part in enumerate(parts) for key, _ in part.contents()}

    before = where(keys=[f"grey {number}" for number in range(30)])
    after = where(count=40, first=-10, keys=[f"grey {number}" for number in range(-10, 30)])
    assert before == {key: after[key] for key in before}


def test_the_fingerprint_is_of_the_content():
    found = []
    for first in (0, 0, 1):
        register_dataset("greys", lambda root, first=first: Greys(first=first))  # a notebook's cell, run again
        found.append(fingerprint(load("greys")))
    assert found[0] == found[1] != found[2]


def test_copies_are_said():
    register_dataset("greys", lambda root: {"train": Greys(30), "test": Greys(4, first=28)})
    note = load("greys").notes[-1]
    assert note.startswith("2 of 4 test images are copies of images in another split")


def test_labels_may_be_names():
    names = ["light", "dark"]

    class Named(Greys):
        def __init__(self):
            super().__init__(classes=names)
            self.labels = [names[int(grey < 128)] for grey in self.greys]
            del self.targets

        def __getitem__(self, index):
            return Image.new("RGB", (8, 8)), self.labels[index]

    register_dataset("named", lambda root: Named())
    splits = load("named", test_fraction=0.0)
    assert splits.classes == ("light", "dark")
    assert set(labels_of(splits.train)) == {0, 1}


class Odd(Greys):
    """Gives what is asked for in place of image 3."""

    def __init__(self, image, label):
        super().__init__()
        self.odd = image, label

    def __getitem__(self, index):
        return self.odd if index == 3 else super().__getitem__(index)


def of(**attributes):
    return lambda root: Greys(**attributes)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (of(targets=None), "has neither targets nor labels; give it one of them: a list of the labels, in the images"),
        (of(targets=[0.5] * 30),
         "has labels of type float64 and shape (30,); give a whole number or a name for each of the 30 images"),
        (of(targets=[0, 1]), "has labels of type int64 and shape (2,); give a whole number or a name for each"),
        (of(classes=["a"]), "has the label 1, and the 1 classes a; make them agree, numbers count from 0"),
        (of(keys=["a"] * 30), "has 1 different keys for 30 images; give each its own"),
        (of(targets=[1] * 30), "has images of one class only to train on (1); it takes 2 or more"),
        (lambda root: {"training": Greys(), "train": Greys()},
         "has the splits training, train; give one data set, or a mapping of train, maybe validation, maybe test"),
        (lambda root: {"train": Greys(classes=["a", "b"]), "test": Greys(classes=["b", "a"])},
         "has other classes in test than in train; make them agree"),
        (lambda root: {"test": Greys()}, "has test and no image to train on; give a train split"),
        (lambda root: 1 / 0, "cannot be made of data.root = None (ZeroDivisionError: division by zero)"),
        (lambda root: Odd(torch.zeros(3, 8, 8), 0),
         "image 3 is of type Tensor; give images as Pillow has them, without any transform"),
        (lambda root: Odd(Image.new("L", (8, 8)), 1),
         "image 3 comes with the label 1, and its list of labels says 0; make them agree"),
        (lambda root: Odd(None, torch.zeros(2)), "has no image 3 (RuntimeError: Boolean value of Tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_line(factory, text):
    register_dataset("greys", factory)
    assert refusal("greys").startswith(f"data.dataset = greys: {text}")


@pytest.mark.parametrize(
    ("name", "text"), [("digits", "comes with alast-tune"), ("folder", "comes with"), ("a b", "is no name")]
)
def test_names_that_cannot_be_had(name, text):
    with pytest.raises(ConfigError, match=rf"register_dataset = {name}: .*{text}"):
        register_dataset(name, Greys)


def test_a_name_that_nobody_has_registered():
    register_dataset("greys", Greys)
    assert refusal("graze") == (
        "data.dataset = graze: no such data set; there are digits, cifar100, flowers102, food101, folder, "
        "hf:user/name, greys; your own takes alast_tune.register_dataset, or an entry point of group "
        "alast_tune.datasets"
    )


def test_workers_of_ray_register_what_their_driver_has(monkeypatch):
    register_dataset("greys", lambda root: Greys())
    sent = cloudpickle.dumps(_worker_setup())
    monkeypatch.setattr(plugins, "_HERE", {})
    assert _worker_setup() is None
    cloudpickle.loads(sent)()
    assert num_classes_of(DataConfig(dataset="greys", workers=1)) == 2


def test_a_package_registers_it_for_every_process(tmp_path, monkeypatch):
    """As pip leaves a package with an entry point: a module, and a folder that says so."""
    (tmp_path / "greys.py").write_text(
        "from PIL import Image\n"
        "class Greys(list):\n"
        "    targets = [0, 1] * 20\n"
        "def make(root):\n"
        "    return Greys((Image.new('L', (8, 8), number), number % 2) for number in range(40))\n"
    )
    info = tmp_path / "greys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[alast_tune.datasets]\nplugged-greys = greys:make\nbroken-greys = greys:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert num_classes_of(DataConfig(dataset="plugged-greys")) == 2
    text = "cannot be made of data.root = None (AttributeError: module 'greys' has no attribute 'nothing')"
    assert refusal("broken-greys") == f"data.dataset = broken-greys: {text}"
