import numpy as np
import pytest

import gpucnn
from gpucnn.errors import DeviceError, DtypeError, GraphError, ShapeError


def test_python_floats_become_float32_and_arrays_keep_their_dtype():
    assert gpucnn.tensor([1.0, 2.0]).dtype == np.float32
    assert gpucnn.tensor(3.5).dtype == np.float32
    assert gpucnn.tensor(np.zeros(2)).dtype == np.float64
    assert gpucnn.tensor(np.float64(1)).dtype == np.float64
    assert gpucnn.tensor([1, 2]).dtype == np.int64
    assert gpucnn.tensor(np.zeros(2), dtype="float32").dtype == np.float32


def test_a_tensor_of_an_array_shares_its_memory():
    x = np.zeros(3, dtype=np.float32)
    t = gpucnn.tensor(x)
    x[1] = 7
    assert t.numpy()[1] == 7
    assert np.shares_memory(t.detach().data, x)


def test_a_tensor_reads_as_an_array_and_as_a_number():
    t = gpucnn.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.array_equal(np.asarray(t), [[1, 2], [3, 4]])
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert t.sum().item() == 10
    assert (len(t), t.ndim, t.size, t.shape) == (2, 2, 4, (2, 2))
    with pytest.raises(ShapeError, match=r"one element, got shape \(2, 2\)"):
        t.item()


def test_the_repr_shows_values_shape_dtype_and_origin():
    t = gpucnn.tensor([1.0, 2.0], requires_grad=True)
    assert repr(t) == "Tensor([1., 2.], shape=(2,), float32, requires_grad)"
    assert repr(t * 2) == "Tensor([2., 4.], shape=(2,), float32, from=multiply)"
    assert "..." in repr(gpucnn.tensor(np.zeros(1000)))


def test_to_the_same_device_is_the_tensor_itself():
    t = gpucnn.tensor([1.0])
    assert t.to("cpu") is t
    assert str(t.device) == "cpu"


@pytest.mark.parametrize("spec", ["gpu", "cuda:", "cuda:-1", "CUDA", "", 0, "cuda:0x1"])
def test_an_unknown_device_is_refused_with_the_known_ones(spec):
    with pytest.raises(DeviceError, match="expected auto, cpu"):
        gpucnn.tensor([1.0], device=spec)


def test_what_is_no_number_is_refused():
    with pytest.raises(DtypeError, match="expected numbers"):
        gpucnn.tensor(["a", "b"])
    with pytest.raises(ShapeError, match="different lengths"):
        gpucnn.tensor([[1.0], [1.0, 2.0]])
    with pytest.raises(DtypeError, match="only floating-point tensors have gradients"):
        gpucnn.tensor([1, 2], requires_grad=True)


def test_elements_cannot_be_assigned():
    t = gpucnn.tensor([1.0, 2.0])
    with pytest.raises(GraphError, match="cannot be changed in place"):
        t[0] = 5.0


def test_an_array_on_the_left_makes_a_tensor():
    t = gpucnn.tensor([1.0, 2.0], requires_grad=True)
    y = np.array([3.0, 4.0], dtype=np.float32) * t
    assert isinstance(y, gpucnn.Tensor)
    y.sum().backward()
    assert np.array_equal(t.grad, [3, 4])
