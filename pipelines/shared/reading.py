"""What comes after the last attention, computed where somebody reads it and nowhere else.

The last block's MLP and the LM head look at one position at a time, and at positions whose last
hidden state nobody reads (prompts, padding) they work for nothing. Hooks hand them the others. So
whatever a model does around them (scaling, soft caps, residuals) it still does itself.

B sequences, T columns, N positions that are read.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel

# Positions in a batch: a mask (B, T) bool, in row-major order; or rows (N,) and columns (N,), in
# any order, the same position as often as one likes.
Places = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

LAYERS = ("h", "layers")  # what Transformers calls a decoder's blocks
ROUTING = ("router", "experts", "gate")  # modules of a mixture of experts


def unwrapped(model: Any) -> Any:
    """The Transformers model below a PEFT adapter and what a Trainer wraps around for several
    devices, or `model` itself."""
    inner: Any = extract_model_from_parallel(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def as_mask(places: Places, shape: Sequence[int]) -> torch.Tensor:
    """The positions as a mask (B, T) bool."""
    if isinstance(places, torch.Tensor):
        return places
    mask = torch.zeros(*shape, dtype=torch.bool, device=places[0].device)
    mask[places] = True
    return mask


@contextlib.contextmanager
def head_at(model: Any, places: Places) -> Iterator[None]:
    """Inside, the LM head computes these positions alone: a forward pass gives logits (N, V).

    Raises:
        ValueError: the model does not say which module its LM head is.
    """
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(unwrapped(model)).__name__} has no LM head of its own")
    hook = head.register_forward_pre_hook(
        lambda module, arguments: (arguments[0][places], *arguments[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def last_mlp(model: Any) -> Any:
    """The MLP of a decoder's last block, or None where there is none that is known to look at one
    position at a time and at nothing else.

    It is a module `mlp` of a class `...MLP`, as most of Transformers' decoders have, that is called
    with the states alone (Bloom's takes the residual, too) and routes nothing to experts.
    """
    trunk = unwrapped(model).base_model
    layers = next((getattr(trunk, name) for name in LAYERS if hasattr(trunk, name)), None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        return None
    # A block that is computed again in the backward pass would find other positions then.
    if getattr(layers[-1], "gradient_checkpointing", False):
        return None
    mlp: Any = getattr(layers[-1], "mlp", None)
    if not type(mlp).__name__.endswith("MLP") or any(hasattr(mlp, name) for name in ROUTING):
        return None
    return mlp if len(inspect.signature(type(mlp).forward).parameters) == 2 else None


@contextlib.contextmanager
def mlp_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the last block's MLP computes these positions alone and adds nothing to the others,
    whose last hidden states are not the model's then; nothing happens where `last_mlp` is None.

    Args:
        positions: (B, T) bool.
    """
    mlp = last_mlp(model)
    if mlp is None:
        yield
        return
    hooks = (
        mlp.register_forward_pre_hook(
            lambda module, arguments: (arguments[0][positions], *arguments[1:])
        ),
        mlp.register_forward_hook(lambda module, arguments, output: spread(output, positions)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def spread(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`values` (N, width) at their positions and 0 elsewhere: (B, T, width)."""
    result = values.new_zeros(*positions.shape, values.shape[-1])
    return result.index_put(positions.nonzero(as_tuple=True), values)
