"""SpecTran: a spectrum-aware transformer adapter, which attends to the whole spectrum instead of truncating it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.section import Section
from models.core.adapter import Spectrum
from models.core.fusion import FusedAdapter

Variant = Literal["full", "without_attention", "principal_sigma", "principal_identity", "without_encoding"]


class SpecTran(FusedAdapter):
    """T = E_id + E_s, E_s = U W^T, W = softshrink_lambda(Q K^T) + [diag(D), 0]  (SpecTran, Eqs. 7-11).

    U: (N, r), frozen. Q: (d_s, k) and K: (r, k), k = d_s, the columns of E_s: d, or d / 2 for `concat`. lambda >= 0 is learned.
    D_i = sigma_1 * sum_k alpha_k (sigma_i / sigma_1)^k, a Taylor polynomial of the normalised spectrum with learned coefficients.
    With fusion `none`, T = E_s; with `concat`, T = [E_id ; E_s] and E_s has d / 2 columns.
    """

    class Config(Section):
        variant: Variant = Field("full", description="the ablations of the paper's Table 3")
        fusion: Literal["add", "none", "concat"] = Field(
            "add", description="IDs added to the text, text alone, or IDs beside it in halves"
        )
        order: int = Field(3, ge=0, le=8, description="n, the order of the Taylor polynomial")
        alpha: Literal["shared", "per_dim"] = Field("shared", description="one polynomial, or one per output dimension")
        center: bool = Field(False, description="read the centred spectrum instead of the plain one")
        id_std: float = Field(0.02, ge=0, description="standard deviation of the initial ID embeddings, where IDs are fused")
        decay_all: bool = Field(
            False,
            description="let weight decay act on lambda and alpha too, which it spares otherwise: our choice, not the paper's",
        )

    per_item = ("U", "id_embedding")

    def __init__(self, config: Config, spectrum: Spectrum, dim: int) -> None:
        super().__init__("spectran", config.fusion, spectrum.n_items, dim, config.id_std)
        used = spectrum.centred if config.center else spectrum
        width = self.semantic_dim  # d, or d / 2 for concat
        used.require_rank(dim, "spectran", dim // width)
        self.variant = config.variant
        self.decay_all = config.decay_all
        self.register_buffer("U", used.U, persistent=False)  # (N, r)
        self.register_buffer("sigma", used.sigma[:width].clone(), persistent=False)  # (d_s,)
        if self.attends:
            self.query = nn.Parameter(torch.randn(width, width) * 0.1)  # Q (d_s, k)
            self.key = nn.Parameter(torch.randn(used.rank, width) * 0.1)  # K (r, k)
            self.threshold = nn.Parameter(torch.zeros(()))  # lambda
        if self.encodes:
            rows = (width,) if config.alpha == "per_dim" else ()
            self.alpha = nn.Parameter(torch.ones(*rows, config.order + 1))

    U: Tensor
    sigma: Tensor

    @property
    def attends(self) -> bool:
        """Whether this variant has the attention softshrink(Q K^T)."""
        return self.variant != "without_attention"

    @property
    def encodes(self) -> bool:
        """Whether this variant learns the Taylor encoding D."""
        return self.variant in ("full", "without_attention")

    def attention(self) -> Tensor:
        """Return Phi = softshrink_lambda(Q K^T), (d_s, r).

        torch's softshrink takes lambda as a number and gives it no gradient, so it is computed here. Lambda starts at 0 and is
        kept >= 0 by clamping in place, which preserves its gradient at 0; as |.|, relu or a square of a parameter, it would stay
        at 0. Evaluation also clamps, so that saved weights have lambda >= 0.
        """
        with torch.no_grad():
            self.threshold.clamp_(min=0)
        product = self.query @ self.key.T  # (d_s, r)
        return product.sign() * (product.abs() - self.threshold).clamp(min=0)

    def principal(self) -> Tensor:
        """Return D, the weights of the d_s principal components, (d_s,)."""
        if self.variant == "principal_sigma":
            return self.sigma
        if self.variant == "principal_identity":
            return torch.ones_like(self.sigma)
        if self.variant == "without_encoding":
            return torch.zeros_like(self.sigma)
        relative = (self.sigma / self.sigma[0]).unsqueeze(-1)  # (d_s, 1)
        powers = relative ** torch.arange(self.alpha.shape[-1], device=relative.device)  # (d_s, n + 1)
        return self.sigma[0] * (powers * self.alpha).sum(-1)

    def weights(self) -> Tensor:
        """Return W = Phi + [diag(D), 0], (d_s, r)."""
        return self.attention() + nn.functional.pad(self.principal().diag(), (0, self.U.shape[1] - self.semantic_dim))

    def project(self) -> Tensor:
        return self.U @ self.weights().T if self.attends else self.U[:, : self.semantic_dim] * self.principal()

    def table(self) -> Tensor:
        if self.fusion == "add" and self.attends:
            return torch.addmm(self.id_embedding, self.U, self.weights().T)  # saves one pass over the table
        return super().table()

    def undecayed_parameters(self) -> list[nn.Parameter]:
        if self.decay_all:
            return []
        return [getattr(self, name) for name in ("threshold", "alpha") if hasattr(self, name)]

    @torch.no_grad()
    def report(self) -> dict[str, object]:
        """Return learned lambda, alpha and D with its ends, the share of zeros in Phi, and the weights of the paper's Table 6."""
        principal = self.principal()
        result: dict[str, object] = {
            "principal": principal.tolist(),
            "principal_min": principal.min().item(),
            "principal_max": principal.max().item(),
            "principal_weight": principal.mean().item(),
        }
        if self.encodes:
            result["alpha"] = self.alpha.tolist()
        if self.attends:
            phi = self.attention()
            result["threshold"] = self.threshold.item()
            result["zero_share"] = (phi == 0).float().mean().item()
            result["principal_weight"] = (principal + phi.diagonal()).mean().item()
            result["subordinate_weight"] = phi[:, self.semantic_dim :].abs().sum(1).mean().item()
        return result
