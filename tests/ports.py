"""Public ports of lambda networks as plain torch and einsums: their state dicts to the letter, for parity.

Written from what is known of each layout, not from its code; slow and direct. Shapes: B batch, H heads,
K query depth, U intra-depth, V value depth, N positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DLi14", "Leaderj1001", "Leaderj1001V0", "OldLucidrains", "disturb", "shortcut_biases", "step"]


def lambda_map(
    queries: Tensor, keys: Tensor, values: Tensor, kernel: Tensor, size: tuple[int, int], bias: Tensor | None = None
) -> Tensor:
    """[B, H, K, N], [B, K, U, N], [B, V, U, N] and a local kernel [K, U, r, r] to [B, HV, h, w]."""
    batch, v, u, n = values.shape
    r = kernel.shape[-1]
    windows = F.unfold(values.reshape(batch * v, u, *size), r, padding=r // 2).reshape(batch, v, u, r * r, n)
    lambdas = torch.einsum("kur,bvurn->bkvn", kernel.flatten(2), windows)
    lambdas = lambdas + torch.einsum("bkum,bvum->bkv", keys.softmax(-1), values)[..., None]
    if bias is not None:
        lambdas = lambdas + bias[:, None, None]
    return torch.einsum("bhkn,bkvn->bhvn", queries, lambdas).reshape(batch, -1, *size)


class DLi14Layer(nn.Module):
    def __init__(self, dim: int, stride: int, k: int = 16, u: int = 1, heads: int = 4, r: int = 23) -> None:
        super().__init__()
        self.shape = (heads, k, u, dim // heads)
        self.stride = stride
        self.conv_qkv = nn.Conv2d(dim, heads * k + k * u + dim // heads * u, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * k)
        self.norm_v = nn.BatchNorm2d(dim // heads * u)
        self.lambda_conv = nn.Conv3d(u, k, (1, r, r))

    def forward(self, x: Tensor) -> Tensor:
        heads, k, u, v = self.shape
        queries, keys, values = self.conv_qkv(x).split([heads * k, k * u, v * u], dim=1)
        out = lambda_map(
            self.norm_q(queries).reshape(len(x), heads, k, -1),
            keys.reshape(len(x), u, k, -1).transpose(1, 2),
            self.norm_v(values).reshape(len(x), u, v, -1).transpose(1, 2),
            self.lambda_conv.weight[:, :, 0],
            x.shape[2:],
            self.lambda_conv.bias,
        )
        return F.avg_pool2d(out, 3, 2, 1) if self.stride == 2 else out


class Leaderj1001Layer(nn.Module):
    """Of either generation: the earlier normalises its keys, the later its values."""

    def __init__(self, dim: int, later: bool, k: int = 16, u: int = 1, heads: int = 4, r: int = 23) -> None:
        super().__init__()
        self.shape = (heads, k, u, dim // heads)
        self.queries = nn.Sequential(nn.Conv2d(dim, heads * k, 1, bias=False), nn.BatchNorm2d(heads * k))
        self.keys = nn.Sequential(nn.Conv2d(dim, k * u, 1, bias=False))
        self.values = nn.Conv2d(dim, dim // heads * u, 1, bias=False)
        if later:
            self.values = nn.Sequential(self.values, nn.BatchNorm2d(dim // heads * u))
        else:
            self.keys.append(nn.BatchNorm2d(k * u))
        self.embedding = nn.Parameter(torch.randn(k, u, 1, r, r))

    def forward(self, x: Tensor) -> Tensor:
        heads, k, u, v = self.shape
        return lambda_map(
            self.queries(x).reshape(len(x), heads, k, -1),
            self.keys(x).reshape(len(x), k, u, -1),
            self.values(x).reshape(len(x), v, u, -1),
            self.embedding[:, :, 0],
            x.shape[2:],
        )


class DLi14Block(nn.Module):
    def __init__(self, dim: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = DLi14Layer(planes, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.downsample = None
        if stride == 2 or dim != planes * 4:
            shortcut = nn.Conv2d(dim, planes * 4, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes * 4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return (self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x))).relu()


class Leaderj1001Block(nn.Module):
    """Of the later generation: the first block of a stage pools whatever its stride."""

    later = True

    def __init__(self, dim: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, planes, 1, bias=False), nn.BatchNorm2d(planes)
        first = stride == 2 or dim != planes * 4
        pool = [nn.AvgPool2d(3, stride, 1)] if first else []
        self.conv2 = nn.Sequential(Leaderj1001Layer(planes, self.later), *pool, nn.BatchNorm2d(planes), nn.ReLU())
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        shortcut = [nn.Conv2d(dim, planes * 4, 1, stride), nn.BatchNorm2d(planes * 4)] if first else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.bn1(self.conv1(x)).relu())
        return (self.bn3(self.conv3(out)) + self.shortcut(x)).relu()


class Leaderj1001V0Block(Leaderj1001Block):
    later = False


class Port(nn.Module):
    """The ResNet around any block; its last pool is one of 7x7 at 224 pixels, and global at any size."""

    def __init__(
        self, block: type[nn.Module], depths: tuple[int, ...], strides: tuple[int, ...], head: str, dropout: float = 0
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.has_pool = strides[0] == 1
        dim = 64
        for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
            planes, blocks = 64 * 2**stage, []
            for position in range(depth):
                blocks.append(block(dim, planes, stride if position == 0 else 1))
                dim = planes * 4
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.head = head
        linear = nn.Linear(dim, 1000)
        self.add_module(head, nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        if self.has_pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


class DLi14(Port):
    """d-li14/lambda.pytorch."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__(DLi14Block, depths, (1, 2, 2, 2), "fc")


class Leaderj1001(Port):
    """leaderj1001/LambdaNetworks, with batch-normalised values and a max-pool."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__(Leaderj1001Block, depths, (1, 2, 2, 2), "fc", dropout=0.3)


class Leaderj1001V0(Port):
    """leaderj1001/LambdaNetworks as it first was, with batch-normalised keys and without a max-pool."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__(Leaderj1001V0Block, depths, (2, 2, 2, 2), "linear")


class OldLucidrains(nn.Module):
    """The layer of lambda-networks before its release 0.2: local with `r`, else global with all pairs of `n`."""

    def __init__(self, dim: int, dim_out: int, k: int, u: int, heads: int, r: int = 0, n: int = 0) -> None:
        super().__init__()
        self.shape = (heads, k, u, dim_out // heads)
        self.to_q = nn.Conv2d(dim, heads * k, 1, bias=False)
        self.to_k = nn.Conv2d(dim, k * u, 1, bias=False)
        self.to_v = nn.Conv2d(dim, dim_out // heads * u, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * k)
        self.norm_v = nn.BatchNorm2d(dim_out // heads * u)
        if r:
            self.R = nn.Parameter(torch.randn(k, u, 1, r, r))
        else:
            self.pos_emb = nn.Parameter(torch.randn(n, n, k, u))

    def forward(self, x: Tensor) -> Tensor:
        heads, k, u, v = self.shape
        queries = self.norm_q(self.to_q(x)).reshape(len(x), heads, k, -1)
        keys = self.to_k(x).reshape(len(x), k, u, -1)
        values = self.norm_v(self.to_v(x)).reshape(len(x), v, u, -1)
        if hasattr(self, "R"):
            return lambda_map(queries, keys, values, self.R[:, :, 0], x.shape[2:])
        lambdas = torch.einsum("nmku,bvum->bkvn", self.pos_emb, values)
        lambdas = lambdas + torch.einsum("bkum,bvum->bkv", keys.softmax(-1), values)[..., None]
        return torch.einsum("bhkn,bkvn->bhvn", queries, lambdas).reshape(len(x), -1, *x.shape[2:])


def shortcut_biases(network: nn.Module) -> list[Tensor]:
    """The biases that leaderj1001's shortcuts have and this package's have not."""
    return [p for name, p in network.named_parameters() if name.endswith("shortcut.0.bias")]


def disturb(module: nn.Module, x: Tensor) -> None:
    """Batch norms of a trained network: statistics near those of `x`, yet not equal, and uneven weights."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d) and part.bias is not None:
            nn.init.normal_(part.bias)
    with torch.no_grad():
        module.train()(x)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)
    module.eval()


def step(module: nn.Module, x: Tensor) -> Tensor:
    """One step of gradient descent in train mode; the gradient of the input.

    Two images or more: for one, torch's batch norm can return wrong gradients to plain einsums.
    """
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    out = module.train()(x)
    (out * torch.randn(out.shape, dtype=out.dtype)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
    return x.grad
