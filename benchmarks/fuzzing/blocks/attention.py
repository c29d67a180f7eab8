"""Attention, in the spellings of hybrids of convolutions and transformers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv

ALL = (1, 2, 3)


def attend(q: Tensor, k: Tensor, v: Tensor, how: str) -> Tensor:
    """(N, heads, tokens, width) each."""
    if how == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if how == "einsum":
        a = torch.einsum("nhqd,nhkd->nhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("nhqk,nhkd->nhqd", a.softmax(-1), v)
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


@block(ALL, how=("matmul", "sdpa", "einsum"), heads=(1, 2), qkv=("fused", "apart"), ratio=(1, 2))
class SelfAttention(Block):
    """Tokens of a map; the value width differs from that of queries and keys by `ratio`."""

    passes = True

    def __init__(self, c: int, how: str, heads: int, qkv: str, ratio: int) -> None:
        super().__init__(c)
        self.heads, self.how, self.key, self.value = heads, how, 3, 3 * ratio
        self.sizes = [heads * self.key, heads * self.key, heads * self.value]
        self.qkv = (
            nn.Linear(c, sum(self.sizes)) if qkv == "fused" else nn.ModuleList(nn.Linear(c, n) for n in self.sizes)
        )
        self.proj = nn.Linear(self.sizes[2], c)
        self.gives = ("proj",)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)  # (N, T, C)
        each = self.qkv(t).split(self.sizes, -1) if isinstance(self.qkv, nn.Linear) else [m(t) for m in self.qkv]
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in each)
        y = attend(q, k, v, self.how).transpose(1, 2).flatten(2)
        return x + self.proj(y).transpose(1, 2).reshape(x.shape)


@block(how=("matmul", "sdpa"))
class Vit(Block):
    """A transformer's block: layer norms, qkv by `reshape(n, t, 3, heads, c // heads)`, an MLP with a hidden width to cut."""

    reads, inside = False, ("fc1", "plain")

    def __init__(self, c: int, o: int, how: str) -> None:
        super().__init__(o)
        d = 8
        self.plain, self.embed, self.how = nn.Conv2d(c, 4, 1), nn.Conv2d(4, d, 1), how
        self.norm1, self.norm2, self.qkv, self.proj = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
        )
        self.fc1, self.fc2, self.leave = nn.Linear(d, 6), nn.Linear(6, d), nn.Linear(d, o)
        self.reads, self.gives = True, ("leave",)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        t = self.embed(self.plain(x).relu()).flatten(2).transpose(1, 2)
        d = t.shape[-1]
        q, k, v = self.qkv(self.norm1(t)).reshape(n, h * w, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        t = t + self.proj(attend(q, k, v, self.how).transpose(1, 2).reshape(n, h * w, d))
        t = t + self.fc2(F.gelu(self.fc1(self.norm2(t))))
        return self.leave(t).transpose(1, 2).view(n, -1, h, w)


@block(position=(True, False))
class YoloAttention(Block):
    """YOLO11: one convolution for queries, keys and values, split by constants; a depthwise convolution of the values."""

    gives, inside = ("leave",), ("plain", "ffn.0")

    def __init__(self, c: int, o: int, position: bool) -> None:
        super().__init__(o)
        d, self.heads = 8, 2
        self.kd, self.vd = 2, d // 2
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, d, 1), nn.Conv2d(d, o, 1)
        self.qkv, self.proj = nn.Conv2d(d, d + 2 * self.kd * self.heads, 1), nn.Conv2d(d, d, 1)
        self.pe = nn.Conv2d(d, d, 3, padding=1, groups=d) if position else None
        self.ffn = nn.Sequential(nn.Conv2d(d, 6, 1), nn.SiLU(), nn.Conv2d(6, d, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        n, c, h, w = x.shape
        q, k, v = (
            self.qkv(x).view(n, self.heads, 2 * self.kd + self.vd, h * w).split([self.kd, self.kd, self.vd], dim=2)
        )
        a = (q.transpose(-2, -1) @ k * self.kd**-0.5).softmax(-1)
        y = (v @ a.transpose(-2, -1)).view(n, c, h, w)
        if self.pe is not None:
            y = y + self.pe(v.reshape(n, c, h, w))
        x = x + self.proj(y)
        return self.leave(x + self.ffn(x))


@block(batch_first=(True, False))
class Torch(Block):
    """nn.MultiheadAttention."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, batch_first: bool) -> None:
        super().__init__(o)
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, o, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        t = x.flatten(2).permute(0, 2, 1) if self.attention.batch_first else x.flatten(2).permute(2, 0, 1)
        y = self.attention(t, t, t, need_weights=not self.attention.batch_first)[0]
        y = y.permute(0, 2, 1) if self.attention.batch_first else y.permute(1, 2, 0)
        return self.leave(x + y.reshape(x.shape))


@block()
class Encoder(Block):
    """nn.TransformerEncoderLayer."""

    gives, inside = ("leave",), ("plain", "layer.linear1")

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, o, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        return self.leave(self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:]))


@block(ALL)
class NonLocal(Block):
    passes, gives, inside = True, ("w",), ("g",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(c)
        self.theta, self.phi, self.g, self.w = (
            conv(dim, c, o, 1),
            conv(dim, c, o, 1),
            conv(dim, c, o + 1, 1),
            conv(dim, o + 1, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, _, *space = x.shape
        theta, phi, g = (m(x).view(n, -1, math.prod(space)) for m in (self.theta, self.phi, self.g))
        a = torch.matmul(theta.transpose(1, 2), phi).softmax(-1)  # (N, T, T)
        return x + self.w(torch.matmul(g, a.transpose(1, 2)).view(n, -1, *space))


@block()
class CrossCovariance(Block):
    """XCA: attention between the channels of a head."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.qkv, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 24, 1), nn.Conv2d(8, o, 1)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.qkv(self.plain(x).relu()).view(n, 3, 2, -1, h * w).unbind(1)
        a = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        return self.leave((a @ v).view(n, -1, h, w))


@block()
class LinearAttention(Block):
    """Efficient attention: keys and values first, by einsum, with a feature map that is positive."""

    gives, inside = ("leave",), ("plain", "v")

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.qk, self.v, self.leave = (
            nn.Conv2d(c, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(4, 5, 1),
            nn.Conv2d(5, o, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        q, k = (F.elu(t.flatten(2)) + 1 for t in self.qk(y).chunk(2, 1))
        kv = torch.einsum("nkt,nvt->nkv", k, self.v(y).flatten(2))
        z = torch.einsum("nkt,nk->nt", q, k.sum(-1))
        return self.leave((torch.einsum("nkt,nkv->nvt", q, kv) / z[:, None]).view(len(x), -1, *x.shape[2:]))


@block(cached=(True, False))
class Window(Block):
    """Swin: windows of 4×4, a bias for each relative position, cached in a dict in eval mode."""

    gives, inside = ("leave",), ("plain", "fc.0")

    def __init__(self, c: int, o: int, cached: bool) -> None:
        super().__init__(o)
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, o, 1)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))
        self.bias = nn.Parameter(torch.randn(2, 49))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        shift = at[:, :, None] - at[:, None] + 3
        self.register_buffer("index", shift[0] * 7 + shift[1], persistent=False)
        self.cache: dict[str, Tensor] | None = {} if cached else None

    def biases(self) -> Tensor:
        if self.cache is None or self.training:
            return self.bias[:, self.index]
        key = str(self.bias.device)
        if key not in self.cache:
            self.cache[key] = self.bias[:, self.index]
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        n, c, h, w = x.shape
        t = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        q, k, v = self.qkv(t).view(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5 + self.biases()).softmax(-1)
        t = t + self.proj((a @ v).transpose(1, 2).reshape(-1, 16, c))
        t = t + self.fc(t)
        return self.leave(t.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w))


@block()
class Queries(Block):
    """DETR: learned queries read the map, and what they found is added to it."""

    passes, gives = True, ("back",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(c)
        self.queries, self.key, self.value = nn.Parameter(torch.randn(5, 4)), nn.Linear(c, 4), nn.Linear(c, o)
        self.back, self.inside = nn.Linear(o, c), ("value",)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        q = self.queries.expand(len(x), -1, -1)
        y = F.scaled_dot_product_attention(q, self.key(t), self.value(t))  # (N, 5, o)
        return x + self.back(y).mean(1)[..., None, None]


@block()
class Mixer(Block):
    """MLP-Mixer: a linear layer over positions."""

    passes, inside = True, ("b", "fc1")

    def __init__(self, c: int, size: int) -> None:
        super().__init__(c)
        self.b, self.a = nn.Linear(size**2, 6), nn.Linear(6, size**2)
        self.fc1, self.fc2 = nn.Linear(c, 7), nn.Linear(7, c)
        self.gives = ("fc2",)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2)
        t = t + self.a(F.gelu(self.b(t)))
        t = t.transpose(1, 2)
        return (t + self.fc2(F.gelu(self.fc1(t)))).transpose(1, 2).reshape(x.shape)
