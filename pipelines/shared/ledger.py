"""The cost of a step: seconds, FLOPs, tokens and peak memory, by phase, and its networks.

FLOPs are counted analytically, multiplications and additions apart (2 per multiply-add), from
matrix products alone: the convention of torch.utils.flop_counter, against which the tests hold
every stage. A backward pass costs twice its forward pass. What is computed is counted, padding
included. (That counter overlooks two things on a CPU: the fused attention, and the in-place
products, `addmm_`, of the backward pass of TRL's LM head. The tests show them to it.)
"""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

COUNTS = ("flops", "tokens_generated", "tokens_trained")


class Ledger:
    """Counts what a step does.

    Example:
        with ledger.phase("rollout"):
            ledger.add(flops=..., tokens_generated=...)
    """

    def __init__(self) -> None:
        self._phases: dict[str, dict[str, float]] = {}
        self._current = "main"
        self._aside: set[str] = set()
        self._networks: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside (seconds of wall clock) and book its counts under `name`.

        Phases may nest; the inner one's seconds are then in both.
        """
        outer, self._current = self._current, name
        start = time.perf_counter()
        try:
            yield
        finally:
            self._book(name)["seconds"] += time.perf_counter() - start
            self._current = outer

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """A phase that only looks at what was done: it is in `phases`, but in no total.

        Not to be nested in another phase, whose seconds would still hold it.
        """
        self._aside.add(name)
        with self.phase(name):
            yield

    def _book(self, name: str) -> dict[str, float]:
        empty = {"seconds": 0.0, **dict.fromkeys(COUNTS, 0)}
        return self._phases.setdefault(name, empty)

    def add(self, *, flops: int = 0, tokens_generated: int = 0, tokens_trained: int = 0) -> None:
        """Book work under the current phase."""
        book = self._book(self._current)
        book["flops"] += flops
        book["tokens_generated"] += tokens_generated
        book["tokens_trained"] += tokens_trained

    def network(self, name: str, model: Any, *, trained: bool = False) -> None:
        """Note a network that the step holds in memory; one of the same name takes its place.

        Args:
            name: what it is to the step: policy, reference, reward model, value model.
            trained: whether its parameters that require a gradient are trained.
        """
        held = list(model.parameters())  # a tied weight is there once
        learnt = [weight for weight in held if trained and weight.requires_grad]
        self._networks[name] = {
            "parameters": sum(weight.numel() for weight in held),
            "trained": sum(weight.numel() for weight in learnt),
            "bytes": model_state_bytes(held, learnt),
        }

    def networks(self) -> dict[str, dict[str, Any]]:
        """Of each network: parameters in all, those trained, and `model_state_bytes`."""
        return {name: dict(row) for name, row in self._networks.items()}

    def phases(self) -> dict[str, dict[str, float]]:
        """Seconds and counts by phase, in the order in which the phases began."""
        return {name: dict(book) for name, book in self._phases.items()}

    def totals(self, seconds: float) -> dict[str, float]:
        """The counts over all phases but those aside, the step's wall-clock seconds less theirs,
        its peak memory in bytes."""
        counted = [book for name, book in self._phases.items() if name not in self._aside]
        sums = {name: sum(book[name] for book in counted) for name in COUNTS}
        beside = sum(self._phases[name]["seconds"] for name in self._aside)
        return {"seconds": seconds - beside, **sums, "peak_memory_bytes": peak_memory_bytes()}


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, plus what it allocated on an accelerator."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return resident + torch.cuda.max_memory_allocated()
    return resident


def model_state_bytes(held: Iterable[Any], trained: Iterable[Any]) -> int:
    """Bytes of weights and, of those that are trained, of gradients and AdamW's two moments.

    With all of them in one type of b bytes: b a parameter that is held, and 3 b more a parameter
    that is trained; in fp32 4 and 16 (the model states of Rajbhandari et al. 2020, sec. 3.1, whose
    own count is for mixed precision). Activations and KV caches, which depend on the batch, are not
    in it.
    """
    return sum(w.numel() * w.element_size() for w in held) + sum(
        3 * w.numel() * w.element_size() for w in trained
    )


def accelerators(device: str) -> list[str] | None:
    """Names of the accelerators that this process has put something on.

    Args:
        device: of the run: "cpu", "cuda", "cuda:1".

    Returns:
        none on a CPU; None where it is not known: PyTorch tells it of CUDA (and ROCm) alone.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return []
    torch = sys.modules.get("torch")
    if torch is None or kind != "cuda" or not torch.cuda.is_initialized():
        return None
    used = [i for i in range(torch.cuda.device_count()) if torch.cuda.max_memory_allocated(i)]
    return [torch.cuda.get_device_name(i) for i in used]


def trained_share(model: Any) -> float:
    """The share of the matrix products' weights that is trained: 1, or next to 0 with LoRA."""
    import torch
    from transformers.pytorch_utils import Conv1D

    weights = [
        module.weight for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return trained / max(sum(weight.numel() for weight in weights), 1)


@dataclass(frozen=True)
class ModelCost:
    """What one token costs in a transformer.

    Attributes:
        body: weights of all matrix products but those of the tail and of the LM head.
        tail: weights of the last block's MLP, where it can be computed at some positions alone (not
            with gradient checkpointing, whose second forward pass is not counted either).
        head: weights of the LM head (0 where there is none).
        layers: attention layers.
        attention_width: heads x head size, the inner width of attention.
    """

    body: int
    tail: int
    head: int
    layers: int
    attention_width: int

    @classmethod
    def of(cls, model: Any) -> "ModelCost":
        """Count a Transformers model's matrix products."""
        import torch
        from transformers.pytorch_utils import Conv1D

        from pipelines.shared.reading import last_mlp

        lm_head, mlp = model.get_output_embeddings(), last_mlp(model)
        config = model.config.get_text_config()
        head_size = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )

        def weights(of: Any) -> int:
            return sum(
                module.weight.numel()
                for module in of.modules()
                if isinstance(module, torch.nn.Linear | Conv1D) and module is not lm_head
            )

        tail = weights(mlp) if mlp is not None else 0
        return cls(
            body=weights(model) - tail,
            tail=tail,
            head=lm_head.weight.numel() if lm_head is not None else 0,
            layers=config.num_hidden_layers,
            attention_width=config.num_attention_heads * head_size,
        )

    def forward(
        self, sequences: int, length: int, logits: int | None = None, read: int | None = None
    ) -> int:
        """FLOPs of a forward pass over `sequences` padded to `length` tokens.

        Args:
            logits: positions in all that go through the LM head; None for every one.
            read: positions in all whose last hidden state is computed; None for `logits`.
        """
        everywhere = sequences * length
        logits = everywhere if logits is None else logits
        read = logits if read is None else read
        matrices = 2 * (everywhere * self.body + read * self.tail + logits * self.head)
        return matrices + 4 * self.layers * self.attention_width * sequences * length * length

    def decode(self, prompt: int, rows: Sequence[int]) -> int:
        """FLOPs of prefilling `prompt` tokens and sampling, with a KV cache.

        Args:
            rows: sequences in the batch at each step, one token each; the first is the prefill's.
        """
        body, attention = self.body + self.tail, 4 * self.layers * self.attention_width
        each, prefill = 2 * (body + self.head), 2 * rows[0] * (prompt * body + self.head)
        prefill += attention * rows[0] * prompt * prompt
        steps = enumerate(rows[1:], start=prompt + 1)
        return prefill + sum(count * (each + attention * length) for length, count in steps)
