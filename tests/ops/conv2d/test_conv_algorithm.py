"""The written rule by which conv2d chooses its engine on the CPU."""

import pytest
from conv_cases import Convolution

import gpucnn
from gpucnn.ops.conv2d import choose_algorithm
from gpucnn.ops.conv2d.im2col import Im2col
from gpucnn.ops.conv2d.space_to_batch import SpaceToBatch
from gpucnn.ops.conv2d.winograd import Winograd


@pytest.mark.parametrize(
    ("case", "engine"),
    [
        (Convolution(n=128, h=16, w=16, c=64, oc=192), Winograd(4)),
        (Convolution(n=128, h=8, w=8, c=384, oc=256), Winograd(4)),
        (Convolution(n=8, h=13, w=13, c=256, oc=384), Winograd(4)),
        (Convolution(n=8, h=2, w=2, c=64, oc=64), Winograd(2)),
        # only the filter's centre is on the image: nothing to save
        (Convolution(n=8, h=1, w=1, c=64, oc=64), Im2col()),
        (Convolution(n=8, h=27, w=27, c=96, oc=256, kernel_size=5, padding=2), Winograd(2)),
        (Convolution(n=128, h=32, w=32, c=3, oc=64), Im2col()),  # few channels
        (Convolution(n=128, h=32, w=32, c=64, oc=3), Im2col()),  # few filters
        (Convolution(n=8, h=16, w=16, c=64, oc=64, stride=2), Im2col()),
        (
            Convolution(n=8, h=16, w=16, c=64, oc=64, padding=2, dilation=2),
            SpaceToBatch(Winograd(4)),
        ),
        (
            Convolution(n=8, h=12, w=12, c=64, oc=64, padding=3, dilation=3),
            SpaceToBatch(Winograd(4)),
        ),
        # phases of 2 x 2 pixels, and of single pixels
        (
            Convolution(n=8, h=12, w=12, c=64, oc=64, padding=6, dilation=6),
            SpaceToBatch(Winograd(2)),
        ),
        (Convolution(n=8, h=12, w=12, c=64, oc=64, padding=12, dilation=12), Im2col()),
        (Convolution(n=8, h=16, w=16, c=64, oc=64, groups=2), SpaceToBatch(Winograd(4))),
        (Convolution(n=8, h=16, w=16, c=64, oc=64, groups=8), Im2col()),  # few channels in a group
        (Convolution(n=8, h=16, w=16, c=64, oc=64, kernel_size=1, padding=0), Im2col()),
        (Convolution(n=8, h=16, w=16, c=64, oc=64, kernel_size=(3, 5), padding=2), Im2col()),
    ],
    ids=str,
)
def test_auto_follows_its_rule(case, engine):
    assert choose_algorithm(case.geometry, case.oc) == engine


@pytest.mark.parametrize(
    ("images", "side", "engine"),
    [
        (1, 8, Im2col()),
        (2, 8, Im2col()),
        (4, 8, Winograd(4)),
        (1, 16, Winograd(4)),
        (20, 2, Im2col()),
        (30, 2, Winograd(2)),
    ],
)
def test_auto_without_gradients_leaves_few_small_images_to_im2col(images, side, engine):
    case = Convolution(n=images, h=side, w=side, c=64, oc=64)
    assert choose_algorithm(case.geometry, case.oc, training=False) == engine
    assert choose_algorithm(case.geometry, case.oc) != Im2col()


@pytest.mark.parametrize(
    ("name", "dense", "strided"),
    [
        ("winograd", Winograd(4), Im2col()),
        ("exact", Im2col(), Im2col()),
        ("plain", Im2col(), Im2col()),
    ],
)
def test_a_named_engine_is_used_even_for_few_channels(name, dense, strided):
    gpucnn.set_conv_algorithm(name)
    assert choose_algorithm(Convolution(n=1, h=8, w=8, c=1, oc=1).geometry, 1) == dense
    assert choose_algorithm(Convolution(n=1, h=8, w=8, c=1, oc=1, stride=2).geometry, 1) == strided
