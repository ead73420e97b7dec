"""Fragment: the unit in which a rank's state is saved and loaded, whatever engine holds it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A flat range of one state of one parameter that this rank holds, and where the range lies in the whole model.

    A parameter of shape `shape` is cut by tensor parallelism along `tp_axis` into `tp_size` equal parts (`tp_axis`
    None: every TP rank has all of it). `tensor` is a view of the live storage: elements [start, start + numel) of the
    row-major flattening of this rank's part. Save reads it, load writes it.
    """

    name: str  # parameter name in the unsharded GPT, e.g. "blocks.0.attn.q.weight"
    state: str  # "weight" (fp32 master), or an optimizer state: "exp_avg", "exp_avg_sq"
    shape: tuple[int, ...]  # of the whole parameter
    tp_axis: int | None
    tp_rank: int
    tp_size: int
    start: int
    tensor: Tensor  # 1-D, (numel,)
    replica: int = 0  # the same range lives on `replicas` ranks; each saves its own share of it
    replicas: int = 1

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of this rank's part of the parameter."""
        return tuple(n // self.tp_size if axis == self.tp_axis else n for axis, n in enumerate(self.shape))
