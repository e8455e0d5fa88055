"""The networks and steps of `vit_steps` as PyTorch users write them: scaled_dot_product_attention, one projection for
queries, keys and values, autocast for bfloat16, eager or under torch.compile. Imported by PyTorch's process alone."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from steps import Finish, Run
from torch import nn
from torch_peer import DEVICE, TorchLars, TorchProjector, check_loss, computing_in, embedding_run, torch_images
from vit_steps import EMBEDDING_WIDTH, LEARNING_RATE, LOGIT_SCALE, LORA, PROJECTOR, VitRow

from tll_jax.models.vit import VisionTransformer


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class TorchAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        outputs = F.scaled_dot_product_attention(query, key, value)
        return self.output(outputs.transpose(1, 2).reshape(batch, count, width))


class TorchVitBlock(nn.Module):
    def __init__(self, settings: VisionTransformer) -> None:
        super().__init__()
        width = settings.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, settings.epsilon) for _ in range(2))
        self.attention = TorchAttention(width, settings.num_heads)
        nonlinearity = QuickGELU() if settings.nonlinearity == "quick-gelu" else nn.GELU()
        self.mlp = nn.Sequential(
            nn.Linear(width, settings.mlp_width), nonlinearity, nn.Linear(settings.mlp_width, width)
        )
        self.is_scaled = settings.layer_scale
        if self.is_scaled:
            self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs = self.attention(self.norm1(tokens))
        tokens = tokens + (outputs * self.scale1 if self.is_scaled else outputs)
        outputs = self.mlp(self.norm2(tokens))
        return tokens + (outputs * self.scale2 if self.is_scaled else outputs)


class TorchVit(nn.Module):
    """Float images in [0, 1] to the class token after the final normalization, and its projection if there is one."""

    def __init__(self, settings: VisionTransformer) -> None:
        super().__init__()
        width, patch = settings.width, settings.patch_size
        self.register_buffer("mean", torch.tensor(settings.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).reshape(1, 3, 1, 1))
        self.patches = nn.Conv2d(3, width, patch, patch, bias=settings.patch_bias)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        num_tokens = (settings.image_size // patch) ** 2 + 1
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.pre_norm = nn.LayerNorm(width, settings.epsilon) if settings.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(TorchVitBlock(settings) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(width, settings.epsilon)
        self.channels = settings.projection or width
        self.projection = nn.Linear(width, settings.projection, bias=False) if settings.projection else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        tokens = self.blocks(self.pre_norm(tokens))
        return self.projection(self.norm(tokens[:, 0]))


class LoraLinear(nn.Module):
    """A frozen linear layer and a trained low-rank one beside it, for each of the `parts` of its outputs."""

    def __init__(self, layer: nn.Linear, parts: int) -> None:
        super().__init__()
        self.layer, self.parts = layer.requires_grad_(False), parts
        inputs, outputs = layer.in_features, layer.out_features // parts
        limit = inputs**-0.5
        self.down = nn.Parameter(torch.empty(inputs, parts * LORA.rank).uniform_(-limit, limit))
        self.up = nn.Parameter(torch.zeros(parts, LORA.rank, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = (x @ self.down) * (LORA.alpha / LORA.rank)
        if self.parts == 1:
            return self.layer(x) + low @ self.up[0]
        ups = [part @ up for part, up in zip(low.chunk(self.parts, -1), self.up, strict=True)]
        return self.layer(x) + torch.cat(ups, -1)


def make_run(row: VitRow, *, compiled: bool) -> Run:
    """The measured function of `row`, resident on the device."""
    torch.manual_seed(0)
    return {"inference": inference, "barlow": barlow, "lora": lora}[row.task](row, compiled=compiled)


def inference(row: VitRow, *, compiled: bool) -> Run:
    network = TorchVit(row.backbone).to(DEVICE).eval()
    return embedding_run(network, row.views()[0], row, compiled=compiled)


def barlow(row: VitRow, *, compiled: bool) -> Run:
    backbone = TorchVit(row.backbone)
    projector = TorchProjector(backbone.channels, PROJECTOR)

    def embed(images: torch.Tensor) -> torch.Tensor:
        z = projector(backbone(images))
        return (z - z.mean(0)) * (z.var(0, correction=0) + 1e-5).rsqrt()

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        correlation = embed(a).T @ embed(b) / len(a)
        agreement = correlation.diagonal()
        redundancy = correlation.square().sum() - agreement.square().sum()
        return (1 - agreement).square().sum() + 0.0051 * redundancy

    parts = nn.ModuleList([backbone, projector]).to(DEVICE)
    return stepping(row, loss, TorchLars(parts.parameters(), batch=row.batch), compiled=compiled)


def lora(row: VitRow, *, compiled: bool) -> Run:
    backbone = TorchVit(row.backbone).requires_grad_(False)
    for block in backbone.blocks:
        block.attention.qkv = LoraLinear(block.attention.qkv, 3)
        block.attention.output = LoraLinear(block.attention.output, 1)
        block.mlp[0], block.mlp[2] = LoraLinear(block.mlp[0], 1), LoraLinear(block.mlp[2], 1)
    head = nn.Linear(backbone.channels, EMBEDDING_WIDTH)
    parts = nn.ModuleList([backbone, head]).to(DEVICE)
    if row.dtype == "bfloat16":
        # Frozen weights as they are computed with: autocast would convert them anew in every step.
        for module in backbone.modules():
            if isinstance(module, LoraLinear):
                module.layer.to(torch.bfloat16)
    trained = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=1e-4, fused=True)

    def loss(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(head(backbone(torch.cat([left, right])))).float().chunk(2)
        logits = LOGIT_SCALE * a @ b.T
        labels = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    return stepping(row, loss, optimizer, compiled=compiled)


def stepping(
    row: VitRow,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer | TorchLars,
    *,
    compiled: bool,
) -> Run:
    """Steps on one batch."""
    a, b = map(torch_images, row.views())
    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> Finish:
        with computing_in(row):
            loss = loss_of(a.float() / 255, b.float() / 255)
        loss.backward()
        optimizer.step()
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.zero_grad()
        return partial(check_loss, row, loss)

    return run
