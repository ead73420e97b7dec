"""Pictures of results, drawn without a display."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES_WITH_NUMBERS = 20


def confusion_matrix(truth: NDArray[Any], predicted: NDArray[Any], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Rows: the true class; columns: the predicted one; colours: share of the row. RGB, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix as count

    counts = count(truth, predicted, labels=range(len(labels)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.5 * min(len(labels), 40)
    figure = Figure(figsize=(size, size), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    if len(labels) <= MOST_CLASSES_WITH_NUMBERS:
        for (row, column), number in np.ndenumerate(counts):
            axes.text(column, row, str(number), ha="center", va="center",
                      color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[:, :, :3].copy()
