"""Which elements of one cut of a parameter are which elements of another cut.

The whole parameter is seen as a matrix of shape[0] rows (a 1-D parameter has rows of one element). A tensor parallel
part is a rectangle of it: a block of rows (axis 0) or of columns (axis 1). A flat range of a part is at most three
rectangles: the end of its first row, whole rows, and the beginning of its last row. Two cuts share the pairwise
intersections of their rectangles.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ranges:
    """K flat ranges of parts of one parameter; `row` and `column` say where in the matrix the part begins."""

    start: Ints  # (K,)
    numel: Ints  # (K,)
    row: Ints  # (K,)
    column: Ints  # (K,)
    width: int  # columns of a part

    @classmethod
    def of(cls, shape: tuple[int, ...], tp_axis: int | None, tp_size: int, tp_rank: Ints, start: Ints, numel: Ints,
           ) -> "Ranges":  # fmt: skip
        rows, columns = (shape[0] if shape else 1), math.prod(shape[1:])
        none = np.zeros_like(tp_rank)
        if tp_axis == 0:
            return cls(start, numel, tp_rank * (rows // tp_size), none, columns)
        if tp_axis == 1:
            return cls(start, numel, none, tp_rank * (columns // tp_size), columns // tp_size)
        return cls(start, numel, none, none, columns)

    def rectangles(self) -> Ints:
        """(K, 3, 4): first row, end row, first column, end column in the whole matrix; empty where end <= first."""
        start, end, width = self.start, self.start + self.numel, self.width
        first, whole, last = start // width, -(-start // width), end // width  # whole: first row taken from column 0
        zero, full = np.zeros_like(start), np.full_like(start, width)
        head = (first, whole, start - first * width, np.minimum(width, end - first * width))
        body = (whole, last, zero, full)
        tail = (np.maximum(last, whole), last + 1, zero, end - last * width)
        corner = np.stack((self.row, self.row, self.column, self.column))[:, :, None]  # (4, K, 1)
        stacked = np.stack([np.stack(rectangle) for rectangle in (head, body, tail)], axis=-1)  # (4, K, 3)
        return (stacked + corner).transpose(1, 2, 0)

    def position(self, which: Ints, row: Ints, column: Ints) -> Ints:
        """Where element (row, column) of the matrix lies in range `which`, counted from the range's first element."""
        inside = (row - self.row[which]) * self.width + column - self.column[which]
        return inside - self.start[which]


@dataclass(frozen=True)
class Copy:
    """A block of rows x columns elements; positions in elements of the flat ranges, strides from row to row."""

    source: int  # which of the source ranges
    rows: int
    columns: int
    source_start: int
    source_stride: int
    target_start: int
    target_stride: int


def copies(source: Ranges, target: Ranges) -> list[Copy]:
    """The blocks that fill the single range `target` from the ranges `source` of the same parameter."""
    a, b = source.rectangles()[:, :, None], target.rectangles()[:, None]  # (K, 3, 1, 4) and (1, 1, 3, 4)
    low, high = np.maximum(a, b)[..., 0::2], np.minimum(a, b)[..., 1::2]  # (K, 3, 3, 2): row, column
    extent = high - low
    hit = (extent > 0).all(axis=-1)
    which = np.nonzero(hit)[0]
    row, column = low[hit].T
    blocks = np.stack((which, *extent[hit].T, source.position(which, row, column),
                       target.position(np.zeros_like(which), row, column)), axis=1)  # fmt: skip
    return [Copy(k, n, m, s, source.width, t, target.width) for k, n, m, s, t in blocks.tolist()]
