"""Weights with a structure: orthogonal, identical, sparse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from weightsmith import ConfigurationError, Initializer, Site
from weightsmith.tensors import unit_axis

from weightsmith_plugins.initializers.direct import blank
from weightsmith_plugins.initializers.scaled import MatrixInitializer
from weightsmith_plugins.shapes import no_matrix, no_units

__all__ = ["DeltaOrthogonal", "Dirac", "Identity", "Orthogonal", "Sparse"]


class Orthogonal(MatrixInitializer):
    """Rows (or columns, if there are more rows than columns) orthonormal, times ``gain``; uniformly distributed.

    Saxe et al. (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    arXiv:1312.6120. A convolution's filters are taken as rows. The unit axis of a transposed convolution counts rows.

    Args:
        gain: the scale. Default 1.
        gates: into how many blocks along axis 0 the weight of a recurrent layer falls, each drawn on its own;
            ``"auto"`` (default) reads the module: 4 for LSTM, 3 for GRU, else 1.

    Shapes: weights with two axes or more; axis 0 divisible by ``gates``.

    >>> drawn = Orthogonal()(torch.empty(3, 5))
    >>> torch.allclose(drawn @ drawn.T, torch.eye(3), atol=1e-6)
    True
    """

    gain: float = 1.0
    gates: int | str = "auto"

    def validate(self) -> None:
        if self.gates != "auto" and not (isinstance(self.gates, int) and self.gates >= 1):
            raise ConfigurationError(f"{self!r}: gates must be 'auto' or a whole number of at least 1")

    def misfit(self, weight: Tensor, site: Site) -> str:
        gates = self._gates(site)
        return no_units(weight) or (f"its rows are not {gates} equal gates" if weight.shape[0] % gates else "")

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        gates = self._gates(site)
        if gates > 1:
            return torch.cat([self._block(gate, 0, site) for gate in weight.chunk(gates)])
        return self._block(weight, unit_axis(weight, site.unit_dims), site)

    def _gates(self, site: Site) -> int:
        return self.gates if isinstance(self.gates, int) else site.gates

    def _block(self, block: Tensor, rows: int, site: Site) -> Tensor:
        drawn = blank(block.movedim(rows, 0))  # in float32 at least, for which QR is defined
        nn.init.orthogonal_(drawn, self.gain, generator=site.generator)
        return drawn.movedim(0, rows).to(block.dtype)


class DeltaOrthogonal(Initializer):
    """A convolution whose kernel is orthogonal at its centre and zero elsewhere, so that it keeps norms from the start.

    Xiao et al. (2018), "Dynamical isometry and a mean field theory of CNNs", arXiv:1806.05393.

    Args:
        gain: the scale. Default 1.

    Shapes: ``(outputs, inputs, *kernel)`` with outputs ≥ inputs and a kernel of odd sizes.

    Raises:
        ConfigurationError: the shape is another.

    >>> drawn = DeltaOrthogonal()(torch.empty(4, 3, 3, 3))
    >>> centre = drawn[:, :, 1, 1]
    >>> torch.allclose(centre.T @ centre, torch.eye(3), atol=1e-6), drawn.count_nonzero().item() <= 12
    (True, True)
    """

    gain: float = 1.0

    def misfit(self, weight: Tensor, site: Site) -> str:
        kernel = tuple(weight.shape[2:])
        if kernel and weight.shape[0] >= weight.shape[1] and all(size % 2 for size in kernel):
            return ""
        return "needed is a convolution with at least as many outputs as inputs and odd kernel sizes"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        centre = blank(weight.flatten(2)[..., 0])
        nn.init.orthogonal_(centre, self.gain, generator=site.generator)
        drawn = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device).flatten(2)
        drawn[..., drawn.shape[2] // 2] = centre.to(weight.dtype)  # of odd sizes, so this is its centre
        return drawn.reshape(weight.shape)


class Identity(Initializer):
    """gain on the diagonal, 0 elsewhere: the layer hands its inputs on, as many as there are outputs.

    Args:
        gain: what each input is multiplied by. Default 1.

    Shapes: ``(outputs, inputs)``.

    >>> Identity(2.0)(torch.empty(2, 3))
    tensor([[2., 0., 0.],
            [0., 2., 0.]])
    """

    gain: float = 1.0

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_matrix(weight) and f"{no_matrix(weight)} (Dirac is the identity for convolutions)"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return self.gain * torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)


class Dirac(Initializer):
    """A convolution that hands its input channels on, as many as there are outputs. As ``torch.nn.init.dirac_``.

    Args:
        groups: each group of outputs gets its own identity. Default 1.

    Shapes: ``(outputs, inputs / groups, *kernel)`` with one to three kernel axes; outputs divisible by ``groups``.

    >>> Dirac()(torch.empty(1, 2, 3))
    tensor([[[0., 1., 0.],
             [0., 0., 0.]]])
    """

    groups: int = 1

    def misfit(self, weight: Tensor, site: Site) -> str:
        if weight.ndim in (3, 4, 5) and weight.shape[0] % self.groups == 0:
            return ""
        return f"needed is a convolution whose outputs fall into {self.groups} equal groups"

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        drawn: Tensor = nn.init.dirac_(torch.zeros_like(weight), self.groups)
        return drawn


class Sparse(Initializer):
    """w ~ N(0, std²), but in each column the share ``sparsity`` of the values is 0.

    Martens (2010), "Deep learning via Hessian-free optimization". As ``torch.nn.init.sparse_``.

    Args:
        sparsity: share of zeros in each column, from 0 to 1, rounded up to whole values.
        std: standard deviation of the others, at least 0. Default 0.01.

    Shapes: ``(outputs, inputs)``.

    >>> (Sparse(0.5)(torch.empty(4, 3)) == 0).sum(dim=0)
    tensor([2, 2, 2])
    """

    sparsity: float
    std: float = 0.01

    def validate(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise ConfigurationError(f"{self!r}: sparsity must be from 0 to 1")
        if not self.std >= 0:
            raise ConfigurationError(f"{self!r}: std must be at least 0")

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_matrix(weight)

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        drawn = nn.init.normal_(blank(weight), 0.0, self.std, site.generator)
        zeros = -int(-self.sparsity * weight.shape[0] // 1)
        chosen = torch.rand(weight.shape, generator=site.generator, device=weight.device).argsort(dim=0)[:zeros]
        return drawn.scatter(0, chosen, 0.0).to(weight.dtype)
