"""Test-time averaging over several views of each image: ten crops, or six of small images."""

from gpucnn import nn, ops
from gpucnn.device import working_on
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import is_int
from gpucnn.tensor import Tensor


class _Views(nn.Module):
    """A model whose results are averaged over views of each image."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def views(self, x: Tensor) -> list[Tensor]:
        """Batches (N, H, W, C), each with a view of every image: the cuts, then their mirrors."""
        cuts = self.cuts(x)
        return [*cuts, *(cut[:, :, ::-1] for cut in cuts)]

    def cuts(self, x: Tensor) -> list[Tensor]:
        """The views that are not mirrored."""
        raise NotImplementedError


class TenViews(_Views):
    """Run `model` on the corners and the centre of each image and on their mirror images.

    (N, H, W, C) to (N, K): the logarithm of the mean of ten softmaxes, one for each view of
    size x size pixels.  Its softmax is that mean, so train.evaluate(TenViews(model, 227), loader)
    tests with ten views.  Each view is one call of the model on N images.

    Raises ShapeError, when called, for images smaller than a view.
    Source: Krizhevsky et al. 2012, section 4.1.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__(model)
        self.size = size

    def cuts(self, x: Tensor) -> list[Tensor]:
        size = self.size
        if x.ndim != 4 or min(x.shape[1:3]) < size:
            raise ShapeError(
                f"TenViews: views of {size} x {size} pixels do not fit images {x.shape}"
            )
        bottom, right = x.shape[1] - size, x.shape[2] - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        return [x[:, top : top + size, left : left + size] for top, left in corners]

    def forward(self, x: Tensor) -> Tensor:
        logs = ops.stack([ops.log_softmax(self.model(view)) for view in self.views(x)])
        with working_on(logs.device):
            largest = Tensor(logs.data.max(axis=0))  # tiny probabilities would underflow to 0
        return ops.log(ops.exp(logs - largest).mean(axis=0)) + largest

    def extra_repr(self) -> str:
        return f"{self.size}x{self.size}"


class SixViews(_Views):
    """Run `model` on each image, on two shifted copies of it and on their mirror images.

    (N, H, W, C) to (N, K): the weighted mean of the logits, 1/4 for the image and for its mirror
    image, 1/8 for each of the others.  One copy is shifted down and right by `shift` pixels, the
    other up and left; the edge is filled by reflection, without repeating the edge pixel.
    train.evaluate(SixViews(model), loader) tests with six views.  Each view is one call of the
    model on N images.

    Raises ArgumentError unless shift is a positive int; ShapeError, when called, for images whose
    height or width is not larger than shift.
    Source: Jordan 2024, section 3.5 (arXiv 2404.00498).
    """

    def __init__(self, model: nn.Module, shift: int = 1) -> None:
        super().__init__(model)
        if not is_int(shift) or shift < 1:
            raise ArgumentError(f"SixViews: shift must be a positive int, got {shift}")
        self.shift = shift

    def cuts(self, x: Tensor) -> list[Tensor]:
        s = self.shift
        if x.ndim != 4 or min(x.shape[1:3]) <= s:
            raise ShapeError(f"SixViews: a shift by {s} pixels does not fit images {x.shape}")
        down = ops.concatenate([x[:, s:0:-1], x[:, :-s]], axis=1)
        down = ops.concatenate([down[:, :, s:0:-1], down[:, :, :-s]], axis=2)
        up = ops.concatenate([x[:, s:], x[:, -2 : -s - 2 : -1]], axis=1)
        up = ops.concatenate([up[:, :, s:], up[:, :, -2 : -s - 2 : -1]], axis=2)
        return [x, down, up]

    def forward(self, x: Tensor) -> Tensor:
        logits: list[Tensor] = [self.model(view) for view in self.views(x)]
        whole, down, up = (a + b for a, b in zip(logits[:3], logits[3:], strict=True))
        return whole * (1 / 4) + (down + up) * (1 / 8)

    def extra_repr(self) -> str:
        return f"shift={self.shift}"
