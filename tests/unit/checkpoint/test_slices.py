"""The arithmetic of cuts, against numpy's own slicing."""

import numpy as np
import pytest

from dgpt.checkpoint.slices import Ranges, copies

SHAPES = [
    ((), None),
    ((12,), None),
    ((12,), 0),
    ((12, 8), None),
    ((12, 8), 0),
    ((12, 8), 1),
    ((3, 4), 1),
    ((4, 6, 2), 1),
]


def ranges(shape, axis, tp, cuts):
    """Each of `tp` parts cut at `cuts`; also the element numbers (in the whole tensor) of each range."""
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    parts = [whole] if axis is None else np.split(whole, tp, axis)
    pieces = [(rank, start, piece) for rank, part in enumerate(parts)
              for start, piece in zip([0, *cuts], np.split(part.ravel(), cuts), strict=True)]  # fmt: skip
    columns = np.array([(rank, start, len(piece)) for rank, start, piece in pieces]).T
    return Ranges.of(shape, axis, tp, *columns), [piece for *_, piece in pieces]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("source_tp", [1, 2])
@pytest.mark.parametrize("other_axis", [True, False])
def test_blocks_carry_each_element_to_its_place_once(shape, axis, source_tp, other_axis):
    rng = np.random.default_rng(0)
    numel = int(np.prod(shape, dtype=int))
    source_axis = 0 if axis == 1 and other_axis and shape[0] % 2 == 0 else axis
    cuts = sorted(rng.integers(0, numel // source_tp + 1, size=3)) if numel > 1 else []
    source, source_elements = ranges(shape, source_axis, source_tp if source_axis is not None else 1, cuts)
    for cut in range(numel // 2 + 1) if numel > 1 else [0]:
        target, target_elements = ranges(shape, axis, 2, [cut])
        for k, expected in enumerate(target_elements):
            one = Ranges(target.start[[k]], target.numel[[k]], target.row[[k]], target.column[[k]], target.width)
            got = np.full(len(expected), -1)
            for c in copies(source, one):
                rows, columns = np.ogrid[: c.rows, : c.columns]
                place = c.target_start + rows * c.target_stride + columns
                assert (got[place] == -1).all()
                got[place] = source_elements[c.source][c.source_start + rows * c.source_stride + columns]
            np.testing.assert_array_equal(got, expected)
