"""Training on sizes instead of numbers: every tensor's bytes and every product's FLOPs, nothing computed.

Each method of :class:`Tape` does to sizes what torch does to tensors: it allocates the result, keeps for the
backward what autograd keeps, and counts the FLOPs that torch's ``FlopCounterMode`` counts. A buffer is freed
when nothing refers to it any more, as in torch, so that the peak comes out by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

FLOAT = 4
"""Bytes of a single-precision number."""


class Buffer:
    """Bytes that are live for as long as this object is."""

    __slots__ = ("size", "tape")

    def __init__(self, tape: Tape, size: int) -> None:
        self.tape, self.size = tape, size
        tape.live_bytes += size
        tape.peak_bytes = max(tape.peak_bytes, tape.live_bytes)

    def __del__(self) -> None:
        self.tape.live_bytes -= self.size


@dataclass(slots=True)
class Tensor:
    """So many numbers of so many bytes in a buffer, and the node that made them if a gradient is to come back."""

    count: int
    width: int
    buffer: Buffer
    node: int | None = None

    @property
    def size(self) -> int:
        """Bytes; a view's own, not its buffer's."""
        return self.count * self.width


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter. It is live from the start: only its gradient, and its copies under autocast, cost anything."""

    count: int
    trains: bool


Backward = Callable[[list[Buffer]], "Sequence[Buffer | None]"]
Affine = tuple[Weight, Weight | None]
"""Weight and bias."""


class Tape:
    """Records a forward, then runs its backward.

    Args:
        product_width: bytes of a number in matrix products: 4, or 2 under autocast.
        accumulating: weights have gradients already; new ones are added to them and go.
    """

    def __init__(self, product_width: int = FLOAT, accumulating: bool = False) -> None:
        self._accumulating = accumulating
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._width = product_width
        self._recording = True
        self._collecting: set[int] = set()
        self._nodes: list[tuple[tuple[int | None, ...], Backward] | None] = []
        self._gradients: list[Buffer] = []
        self._copies: list[Buffer] = []

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Keep nothing for a backward of what runs inside."""
        self._recording = False
        yield
        self._recording = True

    def end_autocast(self) -> None:
        """Drop autocast's copies of the weights, but for those that a node waits for."""
        self._copies.clear()

    def new(self, count: int, width: int = FLOAT) -> Tensor:
        """Allocate a tensor that no gradient comes back to."""
        return Tensor(count, width, Buffer(self, count * width))

    def given(self, count: int) -> Tensor:
        """A tensor that was there before, and is counted elsewhere."""
        return Tensor(count, FLOAT, Buffer(self, 0))

    def attach(self, result: Tensor, inputs: Sequence[Tensor], backward: Backward, collects: bool = False) -> Tensor:
        """Let a gradient come back through ``backward``, which turns result's into one for each input.

        Several gradients that arrive are added up; with ``collects`` each one comes back on its own.
        """
        self._nodes.append((tuple(x.node for x in inputs), backward))
        result.node = len(self._nodes) - 1
        if collects:
            self._collecting.add(result.node)
        return result

    def backward(self, result: Tensor) -> None:
        """Run the nodes that made a tensor, last first; each lets go of what it keeps as soon as it has run."""
        if result.node is not None:
            self.backward_from(result.node, result.size)

    def backward_from(self, node: int, size: int) -> None:
        """Run a node, to which a gradient of so many bytes has come, and those before it."""
        waiting = {node: [Buffer(self, size)]}
        for index in range(node, -1, -1):
            entry, self._nodes[index] = self._nodes[index], None
            arrived = waiting.pop(index, None)
            if entry is None or arrived is None:
                continue
            targets, gradients = entry[0], list(entry[1](arrived))
            entry = arrived = None  # what the node kept goes before its gradients are added to others
            for target in targets:
                gradient = gradients.pop(0)
                if target is not None and gradient is not None:
                    there = waiting.setdefault(target, [])
                    if there and target not in self._collecting:
                        there[0] = Buffer(self, gradient.size)  # their sum
                    else:
                        there.append(gradient)
            gradient = None
        self._nodes.clear()

    def weight_gradient(self, *weights: Weight | None, width: int = FLOAT) -> None:
        """Allocate the gradients of those that train; they stay. Under autocast they are computed narrower."""
        for weight in weights:
            if weight is not None and weight.trains:
                computed = Buffer(self, weight.count * width)
                gradient = computed if width == FLOAT else Buffer(self, weight.count * FLOAT)
                if not self._accumulating:
                    self._gradients.append(gradient)

    def _needs_grad(self, x: Tensor, *weights: Weight | None) -> bool:
        return self._recording and (x.node is not None or any(w is not None and w.trains for w in weights))

    # What torch's functions do, in the order of a block

    def layer_norm(self, x: Tensor, rows: int, weight: Weight, bias: Weight | None) -> Tensor:
        """Normalise each row; keeps the input, and mean and deviation of each row."""
        y = self.new(x.count, x.width)
        statistics = self.new(2 * rows).buffer
        if not self._needs_grad(x, weight, bias):
            return y
        back, kept, size = x.node is not None, (x.buffer, statistics), x.size

        def backward(_: list[Buffer], kept: object = kept) -> Sequence[Buffer | None]:
            gradient = Buffer(self, size) if back else None
            self.weight_gradient(weight, bias)
            return (gradient,)

        return self.attach(y, [x], backward)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None, outputs: int) -> Tensor:
        """Matrix product; keeps the input for the weight's gradient, and the weight's copy for the input's."""
        x = self.cast(x, self._width)
        copy, copied_bias = self._copy(weight), self._copy(bias)
        rows = x.count * outputs // weight.count
        product = 2 * rows * weight.count
        self.flops += product
        y = self.new(rows * outputs, self._width)
        del copied_bias
        if not self._needs_grad(x, weight, bias):
            return y
        back, size = x.node is not None, x.size
        kept = (x.buffer if weight.trains else None, copy if back else None)

        def backward(_: list[Buffer], kept: object = kept) -> Sequence[Buffer | None]:
            gradient = Buffer(self, size) if back else None
            self.flops += product * (back + weight.trains)
            self.weight_gradient(weight, bias, width=self._width)
            return (gradient,)

        return self.attach(y, [x], backward)

    def cast(self, x: Tensor, width: int) -> Tensor:
        """Convert to another width; nothing where it has that."""
        if x.width == width:
            return x
        y, size = self.new(x.count, width), x.size
        if not self._needs_grad(x):
            return y
        return self.attach(y, [x], lambda _: (Buffer(self, size),))

    def _copy(self, weight: Weight | None) -> Buffer | None:
        """Autocast's copy of a weight: kept for the whole forward if it trains, else made anew at each use."""
        if weight is None or self._width == FLOAT:
            return None
        if not (weight.trains and self._recording):
            return Buffer(self, weight.count * self._width)
        self._copies.append(Buffer(self, weight.count * self._width))
        return self._copies[-1]

    def attention(
        self, qkv: Tensor, batch: int, tokens: int, heads: int, norms: Sequence[Affine] = (), mask: Tensor | None = None
    ) -> Tensor:
        """Fused attention; keeps queries, keys, values, its output, the mask, and a number for each row.

        With ``norms`` (of queries, of keys) those are normalised before. On the way back the gradients of
        queries, keys and values are stacked, then brought into the layout of the product that made them.
        """
        count, width, rows = qkv.count // 3, qkv.width, batch * tokens * heads
        size = count * width
        if self._needs_grad(qkv):
            qkv = self.attach(Tensor(qkv.count, width, qkv.buffer), [qkv], lambda _: (Buffer(self, 3 * size),))
            qkv = self.attach(
                Tensor(qkv.count, width, qkv.buffer), [qkv], lambda _: (Buffer(self, 3 * size),), collects=True
            )
        parts = [Tensor(count, width, qkv.buffer, qkv.node) for _ in range(3)]
        for index, norm in enumerate(norms):
            parts[index] = self.layer_norm(parts[index], rows, *norm)
        product = 2 * count * tokens
        self.flops += 2 * product
        y, sums = self.new(count, width), self.new(rows).buffer
        if any(self._needs_grad(x) for x in parts):
            kept = (*(x.buffer for x in parts), y.buffer, sums, mask.buffer if mask else None)

            def backward(_: list[Buffer], kept: object = kept) -> Sequence[Buffer | None]:
                self.flops += 5 * product  # the scores once more, then four products
                return [Buffer(self, size) for _ in range(3)]

            self.attach(y, parts, backward)
        if not norms:
            return y
        # Normalised queries lie head by head, and so does the output: joining the heads copies it.
        return Tensor(count, width, Buffer(self, size), y.node)

    def gelu(self, x: Tensor) -> Tensor:
        """Activation; keeps its input."""
        y = self.new(x.count, x.width)
        if not self._needs_grad(x):
            return y
        size = x.size
        return self.attach(y, [x], lambda _, kept=x.buffer: (Buffer(self, size),))  # type: ignore[misc]

    def quick_gelu(self, x: Tensor) -> Tensor:
        """Activation x sigmoid(1.702 x); keeps its input and the sigmoid."""
        scaled = self.multiply(x)
        gate, size = self.new(x.count, x.width), x.size
        if self._needs_grad(scaled):
            self.attach(gate, [scaled], lambda _, kept=gate.buffer: (Buffer(self, size),))  # type: ignore[misc]
        del scaled
        y = self.new(x.count, x.width)
        if not self._needs_grad(x):
            return y
        kept = (x.buffer, gate.buffer)
        return self.attach(y, [x, gate], lambda _, kept=kept: (Buffer(self, size), Buffer(self, size)))  # type: ignore[misc]

    def scale(self, x: Tensor, gamma: Weight) -> Tensor:
        """Multiply by a weight for each channel, in single precision; keeps the input if the weight trains."""
        y = self.new(x.count)
        if not self._needs_grad(x, gamma):
            return y
        back, size, full = x.node is not None, x.size, y.size

        def backward(_: list[Buffer], kept: object = x.buffer if gamma.trains else None) -> Sequence[Buffer | None]:
            gradient = Buffer(self, full) if back else None
            if gamma.trains:
                products = Buffer(self, full)
                self.weight_gradient(gamma)
                del products
            return (Buffer(self, size) if back and size != full else gradient,)

        return self.attach(y, [x], backward)

    def add(self, x: Tensor, y: Tensor, width: int = FLOAT) -> Tensor:
        """Sum; both get the same gradient, a narrower one its own copy."""
        z, narrow = self.new(x.count, width), y.size if y.width != width else 0
        if not self._needs_grad(x) and not self._needs_grad(y):
            return z
        return self.attach(z, [x, y], lambda arrived: (arrived[0], Buffer(self, narrow) if narrow else arrived[0]))

    def add_weight(self, x: Tensor, weight: Weight) -> Tensor:
        """Add a weight to every image, in single precision."""
        y, narrow = self.new(x.count), x.size if x.width != FLOAT else 0
        if not self._needs_grad(x, weight):
            return y

        def backward(arrived: list[Buffer]) -> Sequence[Buffer | None]:
            self.weight_gradient(weight)
            return (Buffer(self, narrow) if narrow else arrived[0],)

        return self.attach(y, [x], backward)

    def concatenate(self, x: Tensor, first: Sequence[Weight], count: int) -> Tensor:
        """Put weights before every image's tokens; the gradients are views."""
        y = self.new(count)
        if not self._needs_grad(x, *first):
            return y

        def backward(arrived: list[Buffer]) -> Sequence[Buffer | None]:
            self.weight_gradient(*first)
            return arrived

        return self.attach(y, [x], backward)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put tensors together; the gradients are views."""
        y = self.new(sum(x.count for x in parts), parts[0].width)
        if not any(self._needs_grad(x) for x in parts):
            return y
        number = len(parts)
        return self.attach(y, parts, lambda arrived: arrived * number)

    def slice(self, x: Tensor, count: int) -> Tensor:
        """View of a part; the backward fills a tensor as large as x."""
        y, size = Tensor(count, x.width, x.buffer), x.size
        return self.attach(y, [x], lambda _: (Buffer(self, size),)) if self._needs_grad(x) else y

    def multiply(self, x: Tensor, kept: Buffer | None = None) -> Tensor:
        """Multiply or divide by what needs no gradient, and is kept."""
        y, size = self.new(x.count, x.width), x.size
        if not self._needs_grad(x):
            return y
        return self.attach(y, [x], lambda _, kept=kept: (Buffer(self, size),))  # type: ignore[misc]

    def scatter_add(self, x: Tensor, source: Tensor, index: Buffer) -> Tensor:
        """Add picked tokens to a copy of x; x gets the gradient as it is, the source gathers its own."""
        y, size = self.new(x.count, x.width), source.size
        if not self._needs_grad(x):
            return y
        return self.attach(y, [x, source], lambda arrived, kept=index: (arrived[0], Buffer(self, size)))  # type: ignore[misc]

    def log_softmax(self, x: Tensor) -> Tensor:
        """Keeps its output."""
        y, size = self.new(x.count), x.size
        if not self._needs_grad(x):
            return y
        return self.attach(y, [x], lambda _, kept=y.buffer: (Buffer(self, size),))  # type: ignore[misc]

    def gather(self, x: Tensor, count: int, index: Buffer | None) -> Tensor:
        """Pick some of the numbers; keeps the index, and its backward fills a tensor as large as x."""
        y, size = self.new(count, x.width), x.size
        if not self._needs_grad(x):
            return y
        return self.attach(y, [x], lambda _, kept=index: (Buffer(self, size),))  # type: ignore[misc]

    def pass_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Let y's gradient go to x unchanged."""
        z = Tensor(y.count, y.width, y.buffer)
        return self.attach(z, [x], lambda arrived: (arrived[0],)) if self._needs_grad(x) else z
