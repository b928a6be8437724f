import numpy as np
import pytest

import gpucnn
from gpucnn import nn
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


def test_a_tensor_converts_to_an_array_and_to_a_number():
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
def test_an_unknown_device_is_refused_with_a_list_of_the_known_ones(spec):
    with pytest.raises(DeviceError, match="expected auto, cpu"):
        gpucnn.tensor([1.0], device=spec)


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(DtypeError, match="expected numbers"):
        gpucnn.tensor(["a", "b"])
    with pytest.raises(ShapeError, match="different lengths"):
        gpucnn.tensor([[1.0], [1.0, 2.0]])
    with pytest.raises(DtypeError, match="only floating-point tensors have gradients"):
        gpucnn.tensor([1, 2], requires_grad=True)


def test_requires_grad_sets_the_flag_of_a_leaf_and_returns_the_tensor():
    t = gpucnn.tensor([1.0, 2.0])
    assert t.requires_grad_() is t
    assert t.requires_grad
    assert (t * 2).requires_grad
    assert t.requires_grad_(False) is t
    assert not (t * 2).requires_grad
    assert gpucnn.tensor([1, 2]).requires_grad_(False).dtype == np.int64


def test_requires_grad_refuses_integers_and_freezing_the_result_of_an_op():
    with pytest.raises(DtypeError, match="requires_grad_: only floating-point"):
        gpucnn.tensor([1, 2]).requires_grad_()
    y = gpucnn.tensor([1.0], requires_grad=True) * 2
    assert y.requires_grad_() is y
    with pytest.raises(GraphError, match="requires_grad_: the result of multiply"):
        y.requires_grad_(False)
    assert y.requires_grad


def test_a_frozen_parameter_gets_no_gradient_and_the_others_do():
    layer = nn.Linear(2, 3)
    layer.weight.requires_grad = False
    layer(gpucnn.tensor([[1.0, 2.0]])).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [1, 1, 1]


def test_setting_data_invalidates_graphs_recorded_before():
    x = gpucnn.tensor([3.0], requires_grad=True)
    y = x * x
    x.data = np.array([5.0], np.float32)
    with pytest.raises(GraphError, match="input of multiply was changed"):
        y.backward()
    assert x.grad is None
    (x * x).backward()
    assert x.grad.tolist() == [10]


def test_updating_data_with_an_operator_counts_as_setting_it():
    x = gpucnn.tensor([3.0], requires_grad=True)
    y, array = x * x, x.data
    x.data -= np.float32(1)
    assert x.data is array  # updated in place
    assert x.numpy().tolist() == [2]
    with pytest.raises(GraphError, match="input of multiply was changed"):
        y.backward()


def test_the_cache_of_a_tensor_lives_until_data_is_read_or_set():
    x = gpucnn.tensor([3.0])
    x.cache()["key"] = 1
    assert x.cache() == {"key": 1}
    old = x.cache()
    x.data[...] = 4
    assert x.cache() == {}
    old["late"] = 2  # stored after the change
    assert x.cache() == {}
    x.cache()["key"] = 1
    x.data = np.zeros(1, np.float32)
    assert x.cache() == {}


def test_elements_cannot_be_assigned():
    t = gpucnn.tensor([1.0, 2.0])
    with pytest.raises(GraphError, match="cannot be changed in place"):
        t[0] = 5.0


def test_an_array_as_the_left_operand_gives_a_tensor():
    t = gpucnn.tensor([1.0, 2.0], requires_grad=True)
    y = np.array([3.0, 4.0], dtype=np.float32) * t
    assert isinstance(y, gpucnn.Tensor)
    y.sum().backward()
    assert np.array_equal(t.grad, [3, 4])
