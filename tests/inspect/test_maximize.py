import numpy as np
import pytest

import gpucnn
from gpucnn import inspect, nn
from gpucnn.errors import ArgumentError


def network(rng):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, generator=rng),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, 4, generator=rng),
    )


def test_a_linear_score_is_maximized_along_its_weights(rng):
    # The gradient is w at every step, so x stays start * (1 - decay)**t plus a multiple of w,
    # whose limit is lr (1 - decay) / decay times w over its root mean square.
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    made = inspect.maximize_activation(
        model, "1", [1], (4, 4, 3), steps=400, lr=0.1, decay=0.1, jitter=0
    )
    w = model[1].weight.data[1].reshape(4, 4, 3)
    np.testing.assert_allclose(made[0], 0.9 * w / np.sqrt((w**2).mean()), rtol=1e-3, atol=1e-4)


def test_each_image_excites_its_own_channel_most(rng):
    model = network(rng)
    made = inspect.maximize_activation(model, "1", [4, 0, 2], (8, 8, 3), steps=40, path=None)
    assert made.shape == (3, 8, 8, 3)
    y = model[1](model[0](gpucnn.tensor(made))).data.mean(axis=(1, 2))
    assert (y[:, [4, 0, 2]].argmax(axis=0) == [0, 1, 2]).all()


def test_a_channel_that_is_zero_everywhere_at_the_start_becomes_active():
    conv = nn.Conv2d(1, 1, 1)
    conv.weight.data[...], conv.bias.data[...] = 1, -1  # weak noise never reaches 1
    model = nn.Sequential(conv, nn.ReLU())
    made = inspect.maximize_activation(model, "1", [0], (8, 8, 1), steps=1)
    assert not inspect.activations(model, made)["1"].any()
    made = inspect.maximize_activation(model, "1", [0], (8, 8, 1), steps=60)
    assert inspect.activations(model, made)["1"].mean() > 0.1


def test_a_gradient_whose_square_overflows_is_followed():
    layer = nn.Linear(48, 1)
    layer.weight.data[...] = 1e30
    model = nn.Sequential(nn.Flatten(), layer)
    made = inspect.maximize_activation(model, "1", [0], (4, 4, 3), steps=200, decay=0.1, jitter=0)
    np.testing.assert_allclose(made, 0.9, rtol=1e-3)


def test_a_layer_before_the_last_needs_no_logits_and_the_same_seed_gives_the_same_bits(rng):
    model = nn.Sequential(nn.Conv2d(3, 2, 3, generator=rng))
    one, two, other = (
        inspect.maximize_activation(model, "0", [1], (6, 6, 3), steps=5, seed=seed)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_dream_increases_the_layers_energy_and_stays_near_its_image(rng, tmp_path):
    model = network(rng)
    images = rng.standard_normal((2, 8, 8, 3), np.float32)
    dreams = inspect.deep_dream(model, images, "0", steps=10, lr=0.05, path=tmp_path / "dream.png")

    def energy(x):
        return (model[0](gpucnn.tensor(x)).data ** 2).sum(axis=(1, 2, 3))

    assert (energy(dreams) > 1.2 * energy(images)).all()
    assert np.sqrt(((dreams - images) ** 2).mean(axis=(1, 2, 3))).max() <= 10 * 0.05 + 1e-6
    assert (tmp_path / "dream.png").stat().st_size > 0


def test_one_step_of_a_dream_is_the_normalised_gradient_of_half_the_energy(rng):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)).astype(np.float64)
    images = rng.standard_normal((1, 2, 2, 3))
    dream = inspect.deep_dream(model, images, "1", steps=1, lr=0.3, jitter=0)
    w, x = model[1].weight.data, images.reshape(12)
    gradient = w.T @ (w @ x)
    step = 0.3 * gradient / np.sqrt((gradient**2).mean())
    np.testing.assert_allclose(dream.reshape(12), x + step, rtol=1e-12)


def test_mistakes_in_the_call_are_explained(rng):
    model = network(rng)
    with pytest.raises(ArgumentError, match="channels 0 to 5"):
        inspect.maximize_activation(model, "1", [6], (8, 8, 3))
    with pytest.raises(ArgumentError, match="at least one channel"):
        inspect.maximize_activation(model, "1", [], (8, 8, 3))
    with pytest.raises(ArgumentError, match="expected steps >= 1"):
        inspect.maximize_activation(model, "1", [0], (8, 8, 3), steps=0)
    with pytest.raises(ArgumentError, match="is unknown"):
        inspect.deep_dream(model, np.zeros((1, 8, 8, 3), "f4"), "nine")
