"""Image data sets: the built-in shapes, torchvision's, and a user's folder. This module lists only their names."""

from typing import Final

BUILT_IN: Final = "shapes"
#: Name of a data set that is downloaded -> the class in torchvision.datasets.
DOWNLOADED: Final = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}
NAMES: Final = (BUILT_IN, *DOWNLOADED)
