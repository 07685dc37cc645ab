"""The same functions by faster kernels: GPT-2's GELU in one, matrix products by oneDNN where MKL's
are slow.

A model keeps its configuration, its weights and their names: `save_pretrained` writes what it did.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

# Multiply-adds. oneDNN makes a kernel for every new shape (0.6 ms), and batches of text have many:
# of smaller products that costs what it saves.
SMALL = 2**25


def with_fast_kernels(model: Any) -> Any:
    """`model`, its modules' kernels exchanged in place.

    GPT-2's GELU takes one kernel instead of eight; linear layers are `OneDNNLinear` and
    `OneDNNConv1D` where `onednn_is_faster`.
    """
    quicker = LAYERS if onednn_is_faster() else {}
    for module in model.modules():
        if type(module) in quicker:  # not a subclass of somebody's: quantised, with an adapter
            module.__class__ = quicker[type(module)]
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return model


@functools.cache
def onednn_is_faster(cpus: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether oneDNN's fp32 products are to be preferred to those of MKL, PyTorch's library on
    x86: on AMD's processors, where they are up to 1.4 times as fast (0.5 to 1.05 times on Intel's).
    Told by the maker's name, not by a stopwatch: a run must not depend on the load of a moment.

    Args:
        cpus: Linux's description of them; elsewhere the answer is no.
    """
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and cpus.is_file()
        and "AuthenticAMD" in cpus.read_text()
    )


def onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, or its GELU (GPT-2's): (..., K), (N, K) of any strides, (N,) -> (..., N).

    It has no gradient.
    """
    then: tuple[Any, ...] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *then)
    return result


def suits_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product is a plain one of fp32 on a CPU, and large enough."""
    return (
        type(weight) in (torch.Tensor, torch.nn.Parameter)  # not one quantised or spread
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * weight.numel() >= SMALL * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # a compiler has kernels of its own
    )


class OneDNNProduct(torch.autograd.Function):
    """x W^T + b, (M, K) -> (M, N), and its gradient by x with oneDNN; the gradient by W, whose
    factors oneDNN would have to copy, with PyTorch's own product. It can be differentiated once.

    W is stored as (N, K), or `inputs_first` as (K, N).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        stored: torch.Tensor,
        bias: torch.Tensor | None,
        inputs_first: bool,
    ) -> torch.Tensor:
        by_x, by_stored = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if by_stored else None, stored if by_x else None)
        ctx.inputs_first = inputs_first
        return onednn(x, stored.t() if inputs_first else stored, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, stored = ctx.saved_tensors
        by_x = by_stored = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = onednn(gradient, stored if ctx.inputs_first else stored.t())
        if ctx.needs_input_grad[1]:
            by_stored = x.t() @ gradient if ctx.inputs_first else gradient.t() @ x
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum(0)
        return by_x, by_stored, by_bias, None


def product(
    x: torch.Tensor, stored: torch.Tensor, bias: torch.Tensor | None, inputs_first: bool
) -> torch.Tensor:
    """`OneDNNProduct` over the last axis of x; its forward pass alone where nobody will ask for a
    gradient."""
    if not torch.is_grad_enabled():
        return onednn(x, stored.t() if inputs_first else stored, bias)
    # In two axes, in and out: what a Function returns as a view cannot be changed in place.
    result: Any = OneDNNProduct.apply(x.reshape(-1, x.shape[-1]), stored, bias, inputs_first)
    return result if x.dim() == 2 else result.view(*x.shape[:-1], -1)


class OneDNNLinear(torch.nn.Linear):
    """torch.nn.Linear by `product`, where it `suits_onednn`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not suits_onednn(input, self.weight):
            return super().forward(input)
        return product(input, self.weight, self.bias, inputs_first=False)


class OneDNNConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is (inputs, outputs), by `product`, where it
    `suits_onednn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not suits_onednn(x, self.weight):
            return super().forward(x)
        return product(x, self.weight, self.bias, inputs_first=True)


def watched(module: torch.nn.Module) -> bool:
    """Whether somebody's hook is to be called with what goes through a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class OneDNNMLP(GPT2MLP):
    """GPT-2's MLP. Without gradients the GELU, whose input need not be kept then, is part of the
    first product."""

    def forward(self, hidden_states: Any) -> torch.Tensor:
        first = self.c_fc
        if (
            torch.is_grad_enabled()
            or type(first) is not OneDNNConv1D  # an adapter
            or getattr(self.act, "approximate", None) != "tanh"
            or watched(first)
            or watched(self.act)
            or not suits_onednn(hidden_states, first.weight)
        ):
            return super().forward(hidden_states)
        wide = onednn(hidden_states, first.weight.t(), first.bias, gelu=True)
        return self.dropout(self.c_proj(wide))


LAYERS: dict[type, type] = {
    torch.nn.Linear: OneDNNLinear,
    Conv1D: OneDNNConv1D,
    GPT2MLP: OneDNNMLP,
}
