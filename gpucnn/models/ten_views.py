"""Test-time averaging over ten views of each image, as for the AlexNet of 2012."""

from gpucnn import nn, ops
from gpucnn.device import working_on
from gpucnn.errors import ShapeError
from gpucnn.tensor import Tensor


class TenViews(nn.Module):
    """Run `model` on the corners and the centre of each image and on their mirror images.

    (N, H, W, C) to (N, K): the logarithm of the mean of ten softmaxes, one for each view of
    size x size pixels.  Its softmax is that mean, so train.evaluate(TenViews(model, 227), loader)
    tests with ten views.

    Raises ShapeError, when called, for images smaller than a view.
    Source: Krizhevsky et al. 2012, section 4.1.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        size = self.size
        if x.ndim != 4 or min(x.shape[1:3]) < size:
            raise ShapeError(
                f"TenViews: views of {size} x {size} pixels do not fit images {x.shape}"
            )
        bottom, right = x.shape[1] - size, x.shape[2] - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        views = [x[:, top : top + size, left : left + size] for top, left in corners]
        views += [view[:, :, ::-1] for view in views]
        logs = ops.log_softmax(self.model(ops.concatenate(views)))
        logs = ops.reshape(logs, (10, len(x), -1))
        with working_on(logs.device):
            largest = Tensor(logs.data.max(axis=0))  # tiny probabilities would underflow to 0
        return ops.log(ops.exp(logs - largest).mean(axis=0)) + largest

    def extra_repr(self) -> str:
        return f"{self.size}x{self.size}"
