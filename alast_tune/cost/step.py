"""One training step of a Vision Transformer on the :class:`~alast_tune.cost.tape.Tape`, under any method's plan.

Follows timm's modules and our methods' forwards line by line, temporaries and all: a local variable here
lives as long as its counterpart there.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from alast_tune.config import AlastConfig, BsrConfig, MethodConfig, TomeConfig
from alast_tune.cost.tape import FLOAT, Affine, Buffer, Tape, Tensor, Weight
from alast_tune.methods.apla import PartialLinear
from alast_tune.methods.base import StepPlan, blocks_of
from alast_tune.methods.parameters import trained_parameters
from alast_tune.methods.tome import merged_count, merges
from alast_tune.models import QuickGELU, VisionTransformer

INDEX = 8
"""Bytes of an index."""


class StepOnTape:
    """Forward, loss and backward of one micro-batch.

    Args:
        model: as its method has prepared it; its weights are never looked at.
        config: of the method.
        plan: what the step does.
        image_size: side of the images, pixels.
        batch: images in the micro-batch.
        product_width: bytes of a number in matrix products: 4, or 2 under autocast.
        accumulating: gradients are there already, new ones are added to them.
        trains: ids of the parameters that train, where the caller knows them.
    """

    def __init__(
        self,
        model: VisionTransformer,
        config: MethodConfig,
        plan: StepPlan,
        image_size: int,
        batch: int,
        product_width: int = FLOAT,
        accumulating: bool = False,
        trains: frozenset[int] | None = None,
    ) -> None:
        self.tape = Tape(product_width, accumulating)
        self.held_bytes = 0
        self._model = model
        self._config = config
        self._plan = plan
        self._patches = (image_size // model.patch_embed.patch_size[0]) ** 2
        self._all_tokens = self._patches + int(model.num_prefix_tokens)
        self._batch = batch
        self._width = product_width
        self._qkv: Tensor | None = None
        self._trains = trained_parameters(config, model, plan.trainable_L) if trains is None else trains

    def forward(self) -> StepOnTape:
        """Run the forward alone."""
        self._logits()
        return self

    def calibrate(self) -> Tape:
        """Run what calibration needs of a micro-batch that is not the step's first."""
        with self.tape.no_grad():
            self.run_calibration(self.embed())
        return self.tape

    def run(self) -> StepOnTape:
        """Run all of it: the tape then has the FLOPs and the peak, ``held_bytes`` what waited for the backward."""
        loss = self.loss(self._logits())
        self.tape.end_autocast()
        self.held_bytes = self.tape.live_bytes
        self.tape.backward(loss)
        return self

    def _logits(self) -> Tensor:
        x = self.embed()
        if self._plan.calibrated:
            with self.tape.no_grad():
                self.run_calibration(x)
        if isinstance(self._config, TomeConfig):
            return self.classify(self._merging_blocks(x, merges(self._config, self._model)))
        tokens_L = self._plan.tokens_L
        same_step = isinstance(self._config, AlastConfig) and self._config.budget_timing == "same_step"
        held = None if isinstance(self._config, AlastConfig | BsrConfig) else x  # timm's own forward holds it
        for index, block in enumerate(blocks_of(self._model)):
            after = tokens_L[index + 1] if index + 1 < len(tokens_L) else tokens_L[index]
            drops = after < tokens_L[index]
            undecided = same_step and index + 1 < len(tokens_L)
            x = self.run_block(block, x, tokens_L[index], self._plan.trainable_L[index], drops or undecided)
            x = self.keep(block.attn, x, tokens_L[index], after) if drops else x
            self.forget()
        del held
        return self.classify(x)

    def run_block(self, block: Any, x: Tensor, tokens: int, trains: bool, listening: bool) -> Tensor:
        """One block; frozen ones without a graph where the method says so. The tap keeps its qkv while listening."""
        residual = isinstance(self._config, AlastConfig) and self._config.frozen_backward == "residual"
        if not residual or trains or x.node is None:
            return self._block(block, x, tokens, listening)
        with self.tape.no_grad():
            y = self._block(block, x, tokens, listening)
        return self.tape.pass_gradient(x, y)

    def embed(self) -> Tensor:
        """Patches, projected, class token and registers before them, positions added; in some models normalised."""
        model, tape, batch = self._model, self.tape, self._batch
        projection = self._affine(model.patch_embed.proj)
        width = int(model.embed_dim)
        side = model.patch_embed.patch_size[0] * model.patch_embed.patch_size[1]
        images = tape.given(batch * self._patches * side * model.patch_embed.proj.in_channels)
        x = tape.linear(images, *projection, width)
        del images
        first = [self._weight(p) for p in (model.cls_token, model.reg_token) if p is not None]
        count = batch * self._all_tokens * width
        if model.pos_embed is not None and model.no_embed_class:
            x = tape.add_weight(x, self._weight(model.pos_embed))
        x = tape.concatenate(x, first, count)
        if model.pos_embed is not None and not model.no_embed_class:
            x = tape.add_weight(x, self._weight(model.pos_embed))
        return self._norm(model.norm_pre, x)

    def _block(self, block: Any, x: Tensor, tokens: int, listening: bool = False) -> Tensor:
        """timm's Block."""
        return self._mlp(block, self._attend(block, x, tokens, listening), tokens)

    def _attend(self, block: Any, x: Tensor, tokens: int, listening: bool, mask: Tensor | None = None) -> Tensor:
        """First half of a block; the tap keeps its qkv while listening."""
        tape, attention = self.tape, block.attn
        h = tape.layer_norm(x, self._batch * tokens, *self._affine(block.norm1))
        qkv = self._linear(attention.qkv, h)
        norms = [
            self._affine(norm) for norm in (attention.q_norm, attention.k_norm) if not isinstance(norm, nn.Identity)
        ]
        y = tape.attention(qkv, self._batch, tokens, attention.num_heads, norms, mask)
        y = self._linear(attention.proj, y)
        self._qkv = qkv if listening else None
        del h, qkv
        return tape.add(x, self._scaled(block.ls1, y))

    def _mlp(self, block: Any, x: Tensor, tokens: int) -> Tensor:
        tape = self.tape
        h = tape.layer_norm(x, self._batch * tokens, *self._affine(block.norm2))
        y = self._linear(block.mlp.fc1, h)
        y = tape.quick_gelu(y) if isinstance(block.mlp.act, QuickGELU) else tape.gelu(y)
        y = self._linear(block.mlp.fc2, y)
        del h
        return tape.add(x, self._scaled(block.ls2, y))

    def _scaled(self, layer_scale: Any, x: Tensor) -> Tensor:
        return x if isinstance(layer_scale, nn.Identity) else self.tape.scale(x, self._weight(layer_scale.gamma))

    def _linear(self, layer: Any, x: Tensor) -> Tensor:
        """A linear layer: plain, cut in two (APLA), or with adapters (peft)."""
        if isinstance(layer, PartialLinear):
            whole = self.tape.join([self._linear(part, x) for part in (layer.trained, layer.frozen)])
            return self.tape.gather(whole, whole.count, None)
        if isinstance(layer, nn.Linear):
            return self.tape.linear(x, *self._affine(layer), layer.out_features)
        y = self._linear(layer.base_layer, x)
        wide = self.tape.cast(x, FLOAT)  # peft converts to the adapters' type, autocast back again
        for name in layer.active_adapters:
            update = self.tape.multiply(self._linear(layer.lora_B[name], self._linear(layer.lora_A[name], wide)))
            y = self.tape.add(y, update, y.width)
        return y

    def keep(self, attention: Any, x: Tensor, tokens: int, after: int) -> Tensor:
        """Score tokens by the class token's attention and gather the best."""
        tape, batch = self.tape, self._batch
        qkv, self._qkv = self._qkv, None
        assert qkv is not None
        keys = qkv.count // 3
        normed = None if isinstance(attention.k_norm, nn.Identity) else tape.new(keys, qkv.width)
        copy = tape.new(keys, qkv.width)  # the product wants the keys of a head side by side
        tape.flops += 2 * keys
        tape.new(batch * tokens * attention.num_heads)
        del qkv, normed, copy
        index = Buffer(tape, batch * after * INDEX)
        return tape.gather(x, x.count // tokens * after, index)

    def tap(self, keys: int) -> Tensor:
        """Let the tap have queries, keys and values of so many numbers each, which no block has made."""
        self._qkv = self.tape.new(3 * keys, self._width)
        return self._qkv

    def forget(self) -> None:
        """Let go of what the tap has."""
        self._qkv = None

    def _merging_blocks(self, x: Tensor, merges_L: tuple[int, ...]) -> Tensor:
        """ToMe: every block merges tokens between its attention and its MLP."""
        tape, batch, prefix = self.tape, self._batch, int(self._model.num_prefix_tokens)
        size: Tensor | None = None
        tokens = self._plan.tokens_L[0]
        for block, wanted in zip(blocks_of(self._model), merges_L, strict=True):
            r = merged_count(wanted, tokens, prefix)
            mask = None if size is None else tape.new(batch * tokens, self._width)
            x = self._attend(block, x, tokens, r > 0, mask)
            if r:
                self._match(block.attn, tokens - prefix)
                size = tape.new(batch * (tokens - r))
                x = self._merge(x, tokens, r, size)
                tokens -= r
            del mask
            x = self._mlp(block, x, tokens)
        return x

    def _match(self, attention: Any, candidates: int) -> None:
        """Similarity of the mean keys of two alternating halves."""
        qkv, self._qkv = self._qkv, None
        assert qkv is not None
        tape, batch, width = self.tape, self._batch, attention.head_dim
        normed = None if isinstance(attention.k_norm, nn.Identity) else tape.new(qkv.count // 3, qkv.width)
        mean = tape.new(qkv.count // 3 // attention.num_heads, qkv.width)
        del qkv, normed
        metric = tape.new(batch * candidates * width, mean.width)
        some, others = (candidates + 1) // 2, candidates // 2
        tape.flops += 2 * batch * some * others * width
        similarity = tape.new(batch * some * others, self._width)
        del mean, metric, similarity

    def _merge(self, x: Tensor, tokens: int, r: int, size: Tensor) -> Tensor:
        """Weighted means by gather and scatter; the index of each pick stays for the backward."""
        tape, batch = self.tape, self._batch
        width = x.count // (batch * tokens)
        kept, gone, into = (Buffer(tape, batch * rows * INDEX) for rows in (tokens - r, r, r))
        weighed = tape.multiply(x, kept=size.buffer)
        stays = tape.gather(weighed, batch * (tokens - r) * width, kept)
        sums = tape.scatter_add(stays, tape.gather(weighed, batch * r * width, gone), into)
        del weighed, stays
        return tape.multiply(sums, kept=size.buffer)

    def run_calibration(self, x: Tensor) -> None:
        """All blocks on all tokens."""
        for block in blocks_of(self._model):
            x = self._block(block, x, self._all_tokens)

    def classify(self, x: Tensor) -> Tensor:
        """Final norm over all tokens, the class token's row, classifier."""
        model = self._model
        x = self.tape.slice(self._norm(model.norm, x), self._batch * int(model.embed_dim))
        return self._linear(model.head, x) if isinstance(model.head, nn.Linear) else x

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy, in single precision."""
        return self.tape.log_softmax(self.tape.cast(logits, FLOAT))

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        """Normalise all tokens, where the model does that."""
        width = int(self._model.embed_dim)
        return x if isinstance(norm, nn.Identity) else self.tape.layer_norm(x, x.count // width, *self._affine(norm))

    def _affine(self, layer: Any) -> Affine:
        bias = getattr(layer, "bias", None)
        return self._weight(layer.weight), None if bias is None else self._weight(bias)

    def _weight(self, parameter: nn.Parameter) -> Weight:
        return Weight(parameter.numel(), id(parameter) in self._trains)
