"""The matrix products of a piece of work, and the seconds that they take alone: its GEMM floor.

Recorded are aten's mm, addmm, bmm and baddbmm, their in-place and out= variants among them, and
oneDNN's, in forward and backward passes and while decoding. Fused attention is not: its products
are not in the floor, nor is the time of anything else, so the share of the GEMM peak that follows
from it (floor / seconds) is below the true one. Each product is timed hot, with its operands where
the repetition before left them: the floor is what the library could do at best.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Which arguments of an operator are multiplied.
FACTORS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "addmm_": (1, 2),
    "baddbmm": (1, 2),
    "baddbmm_": (1, 2),
    "_linear_pointwise": (0, 1),  # oneDNN's; its second factor is transposed
}
SUSPECT = ("mm", "mv", "linear", "matmul", "convolution", "einsum")  # in an operator's name
PEAK_SIZE = 2048


@dataclass(frozen=True)
class Operand:
    """A tensor's form.

    Attributes:
        stride: in elements.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> torch.Tensor:
        """Normal random numbers in this form; elements that share memory share it here too."""
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(last + 1, dtype=self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """A call of an operator: tensors as `Operand`, everything else as it was."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @property
    def flops(self) -> int:
        """2 per multiply-add."""
        name = self.operator.overloadpacket.__name__
        one, other = (self.args[i] for i in FACTORS[name])
        columns = other.shape[0 if name == "_linear_pointwise" else -1]
        return 2 * math.prod(one.shape) * columns

    @torch.no_grad()
    def seconds(self, repeats: int = 5, at_least: float = 2e-3) -> float:
        """Seconds of one call: the median of some repetitions, each of `at_least` seconds."""
        args = [made(value) for value in self.args]
        kwargs = {name: made(value) for name, value in self.kwargs}

        def call() -> Any:
            return self.operator(*args, **kwargs)

        call()
        calls = max(1, math.ceil(at_least / timed(call)))
        return statistics.median(timed(call, calls) for _ in range(repeats))


def formed(value: Any) -> Any:
    """A tensor's form; anything else itself."""
    if isinstance(value, torch.Tensor):
        return Operand(tuple(value.shape), tuple(value.stride()), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def bare(operator: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Arguments of a product without the activation that oneDNN may compute with it."""
    if operator.overloadpacket.__name__ == "_linear_pointwise":
        return (*args[:3], "none", (), "")
    return args


def made(value: Any) -> Any:
    return value.make() if isinstance(value, Operand) else value


def timed(call: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


class Recorder(TorchDispatchMode):
    """Counts the matrix products inside a `with` block.

    A backward pass runs on the thread that asks for it where everything is on the CPU, so the block
    sees it as well; `forward` and `backward` tell the two apart.

    Attributes:
        forward, backward: times that each product was called.
        overlooked: operators that may hold products and are not recorded, with their calls; of
            fused attention it is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward: Counter[Product] = Counter()
        self.backward: Counter[Product] = Counter()
        self.overlooked: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in FACTORS:
            product = Product(
                func,
                tuple(formed(value) for value in bare(func, args)),
                tuple((key, formed(value)) for key, value in sorted(kwargs.items())),
            )
            in_backward = torch._C._current_graph_task_id() != -1
            (self.backward if in_backward else self.forward)[product] += 1
        elif any(part in name for part in SUSPECT):
            self.overlooked[name] += 1
        return func(*args, **kwargs)

    @property
    def counts(self) -> Counter[Product]:
        return self.forward + self.backward

    @property
    def flops(self) -> int:
        return sum(product.flops * times for product, times in self.counts.items())

    def products(self) -> dict[str, Any]:
        """What was recorded, in numbers."""
        return {
            "distinct": len(self.counts),
            "forward": self.forward.total(),
            "backward": self.backward.total(),
            "flops": self.flops,
            "overlooked": dict(self.overlooked),
        }

    def floor(self) -> dict[str, float]:
        """Seconds of all recorded products, each timed alone in this process; FLOP/s of a square
        product for comparison."""
        return {
            "floor": sum(product.seconds() * times for product, times in self.counts.items()),
            "peak": square_peak(),
        }


def square_peak(size: int = PEAK_SIZE) -> float:
    """FLOP/s of a square fp32 product."""
    form = Operand((size, size), (size, 1), torch.float32)
    product = Product(torch.ops.aten.mm.default, (form, form), ())
    return product.flops / product.seconds(repeats=3)
