"""The second attention of RealCustom as mathematics (RealCustom Eq. 4 and 12); no network is known here.

    out = Softmax(Q K_text^T / sqrt(d)) V_text + sum_i M_i * Softmax(Q K_i^T / sqrt(d)) V_i

Shapes: B images, S subjects, G rows of references (each serves B / G images), n reference tokens, H heads, N = h * w
positions, d channels of a head, C = H * d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

LayerKeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class VisualKeysValues:
    """References as a U-Net's cross-attention layers see them.

    Attributes:
        layers: per layer keys and values, each (G, S, n, C). S = 1 stands for all subjects: they see the same.
        bias: (1 or G, S, n) bool, False at padding, or float, added to the logits; None where all tokens count alike.
    """

    layers: list[LayerKeysValues]
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerReference:
    """What one layer sees of the references.

    Attributes:
        key, value: (G, S, n, C).
        bias: (1 or G, S, n) bool or float, or None, as in `VisualKeysValues`.
        masks: (B, S, N, 1), or None for 1 everywhere (training).
    """

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, scale: float = 0.0
) -> torch.Tensor:
    """Softmax(scale * Q K^T + bias) V for (B, H, N, d) queries and (B, H, n, d) keys and values.

    Fused, but where a CPU is to compute gradients: there the plain products train a third faster.

    Args:
        bias: broadcast to (B, H, N, n); bool, False where nothing is seen, or float; None for none.
        scale: 0 for 1 / sqrt(d).
    """
    scale = scale or query.shape[-1] ** -0.5
    if query.device.type != "cpu" or not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    logits = (query * scale) @ key.transpose(-1, -2)
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(dim=-1).to(value.dtype) @ value


def reference_attention(query: torch.Tensor, heads: int, reference: LayerReference) -> torch.Tensor:
    """Sum over subjects of M_i * attention_i.

    The images that share a row of references line up as more queries of one attention: no key or value is repeated.
    What the reference brings is cast to the query's dtype, which is the one the layer computes in whatever type its
    weights are stored in.

    Args:
        query: (B, N, C).
        heads: H.

    Returns:
        (B, N, C).
    """
    keys, values = (
        rearrange(tensor.to(query.dtype), "g s n (k d) -> (g s) k n d", k=heads)
        for tensor in (reference.key, reference.value)
    )
    groups, subjects = reference.key.shape[:2]
    images = query.shape[0] // groups
    query = rearrange(query, "(g b) n (k d) -> g 1 k (b n) d", g=groups, k=heads).expand(-1, subjects, -1, -1, -1)
    bias = reference.bias
    if bias is not None:
        bias = rearrange(bias.expand(groups, -1, -1), "g s n -> (g s) 1 1 n")
        bias = bias.to(query.dtype) if bias.is_floating_point() else bias
    out = attend(rearrange(query, "g s k n d -> (g s) k n d"), keys, values, bias)
    out = rearrange(out, "(g s) k (b n) d -> (g b) s n (k d)", s=subjects, b=images)
    return (out if reference.masks is None else out * reference.masks.to(out.dtype)).sum(dim=1)
