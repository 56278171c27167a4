"""Data sets: images (the built-in shapes, torchvision's, a user's folder) and texts (a play, a user's file).

This module lists only their names.
"""

import os
from pathlib import Path
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
#: The built-in texts: name -> the file beside this module, compressed by lzma, and the SHA-256 of the text.
#: `shakespeare` is 40,000 lines from plays in the public domain, which A. Karpathy put together for char-rnn (2015).
SHIPPED_TEXTS: Final = {
    "shakespeare": ("shakespeare.txt.xz", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
}
TEXTS: Final = tuple(SHIPPED_TEXTS)


def canonical(data: Path | str) -> str:
    """A data set as configurations record it: by its name, or by the absolute path of its folder or file.

    >>> canonical("shapes"), canonical(Path("no such folder"))
    ('shapes', 'no such folder')
    """
    named = data in (*NAMES, *TEXTS) or not os.path.exists(data)  # Path.exists fails for long names
    return str(data) if named else str(Path(data).resolve())
