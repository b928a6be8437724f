"""Tensors as numbers and in formats, views, casts, and NumPy's functions of tensors."""

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn.errors import ArgumentError, DeviceError, DtypeError, ShapeError


def test_a_tensor_with_one_element_is_a_number_and_formats_as_one(device):
    loss = leaf([[1.23456]], device).sum()
    assert float(loss) == pytest.approx(1.23456)
    assert int(loss) == 1
    assert f"{loss:.3f}" == "1.235"
    assert f"{loss:8.2e}" == "1.23e+00"
    assert f"{loss.detach().reshape(1):.1f}" == "1.2"
    assert f"{tensor(np.int64(42), device):05d}" == "00042"
    assert f"{tensor(np.float32(0.5), device)}" == "0.5"
    assert ["a", "b", "c"][tensor(np.array([2]), device)[0]] == "c"


def test_several_elements_have_no_number_and_no_format_but_a_text():
    x = gpucnn.ones(2)
    assert f"{x}" == str(x) == "Tensor([1., 1.], shape=(2,), float32)"
    with pytest.raises(ShapeError, match=r"format: '.2f' formats one element, got shape \(2,\)"):
        format(x, ".2f")
    for number in (float, int, bool):
        with pytest.raises(ShapeError, match=r"expected one element, got shape \(2,\)"):
            number(x)
    for x in (gpucnn.ones(), gpucnn.arange(1)):
        with pytest.raises(DtypeError, match="is no index; expected a single integer"):
            [1, 2][x]
    assert np.array([5, 6])[gpucnn.arange(1)].shape == (1,)


def test_sizes_have_pytorchs_names_too():
    x = gpucnn.zeros(2, 3)
    assert (x.dim(), x.numel()) == (2, 6)
    assert x.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert x.sum().tolist() == 0


def test_view_permute_squeeze_and_unsqueeze_pass_gradients(device):
    x = leaf(np.arange(6.0).reshape(2, 3), device)
    y = x.view(3, 2).view((1, 6)).squeeze(0).unsqueeze(-1)
    assert y.shape == (6, 1)
    z = x.permute(1, 0)
    np.testing.assert_array_equal(host(z), host(x).T)
    np.testing.assert_array_equal(host(x.permute((1, 0))), host(x).T)
    (y.sum() + (z * z).sum()).backward()
    np.testing.assert_array_equal(host(x.grad), 1 + 2 * host(x))
    with pytest.raises(ShapeError, match="cannot become"):
        x.view(4)
    with pytest.raises(ArgumentError, match="do not order the 2 axes"):
        x.permute(0)


def test_a_view_shares_memory_where_it_can():
    x = gpucnn.zeros(2, 3)
    assert np.shares_memory(x.view(6).data, x.data)
    t = gpucnn.tensor(np.zeros((2, 3), np.float32).T)
    assert not np.shares_memory(t.view(6).data, t.data)


def test_a_clone_is_a_copy_that_passes_gradients(device):
    x = leaf([1.0, 2.0], device)
    y = x.clone()
    y.data[...] = 0
    assert host(x).tolist() == [1, 2]
    (x.clone() * 3.0).sum().backward()
    assert host(x.grad).tolist() == [3, 3]


def test_contiguous_copies_only_what_is_not_contiguous(device):
    x = leaf(np.ones((2, 3), np.float32), device)
    assert x.contiguous() is x
    turned = gpucnn.tensor(x.data.T, requires_grad=True)
    y = turned.contiguous()
    assert y.data.flags.c_contiguous
    y.sum().backward()
    assert turned.grad.shape == (3, 2)


def test_casts_have_pytorchs_names(device):
    x = leaf([0.0, 1.5], device, "float32")
    for name in ("half", "float", "double", "int", "long", "bool"):
        dtype = {"half": "float16", "float": "float32", "double": "float64"}.get(name)
        dtype = dtype or {"int": "int32", "long": "int64", "bool": "bool"}[name]
        assert getattr(x, name)().dtype == dtype
    assert x.float() is x
    x.double().sum().backward()
    assert x.grad.dtype == np.float32


def test_cpu_and_cuda_go_to_these_devices(device):
    x = tensor([1.0], device)
    assert str(x.cpu().device) == "cpu"
    if device.startswith("cuda:") or device == "cuda":
        assert str(x.cuda(x.device.index).device) == str(x.device)
    else:
        try:
            gpucnn.Device.parse("cuda")
        except DeviceError:
            with pytest.raises(DeviceError, match="device cuda"):
                x.cuda()


# --- NumPy's functions ---


@pytest.mark.parametrize(
    "function",
    [
        np.mean, np.sum, np.max, np.std, np.median, np.argmax, lambda x: np.array_equal(x, x),
        np.sort, np.transpose, lambda x: np.mean(x, axis=0), lambda x: np.stack([x, x]),
        lambda x: np.concatenate((x, x)), lambda x: np.clip(x, 0, 1),
        lambda x: np.where(x > 1, x, 0), np.ravel, np.asarray,
        lambda x: np.linalg.norm(x),
    ],
)  # fmt: skip
def test_a_function_of_numpys_returns_an_array_of_its_values(function, device):
    array = np.array([[1.0, 2.0], [3.0, 4.0]])
    for grad in (False, True):
        found = function(tensor(array, device, grad=grad))
        assert isinstance(found, np.ndarray | np.generic | bool)
        np.testing.assert_array_equal(found, function(array))


def test_a_ufunc_of_numpys_refuses_a_tensor():
    for call in (np.exp, np.sqrt, lambda x: np.add(x, 1), lambda x: np.maximum(0, x)):
        with pytest.raises(TypeError, match="operand 'Tensor' does not support ufuncs"):
            call(gpucnn.ones(2))


def test_arrays_of_the_device_combine_with_tensors_on_either_side(device):
    x = leaf([1.0, 2.0], device)
    for y in (x.detach().data + x, x + x.detach().data, x.detach().data * x, x.detach().data - x):
        assert isinstance(y, gpucnn.Tensor)
        assert y.requires_grad


def test_a_tensor_is_no_place_for_results():
    x = gpucnn.zeros(2)
    with pytest.raises(ArgumentError, match="mean: out= is a tensor"):
        np.mean(np.ones((2, 2)), 0, out=x)
