import gpucnn
from gpucnn import models, nn


def test_the_summary_of_alexnet_cifar10_counts_by_hand():
    summary = nn.summary(models.alexnet_cifar10(), (32, 32, 3))
    assert summary.parameters == summary.trainable == 7_506_762
    first = summary.layers[0]
    assert first.output_shape == (32, 32, 64)
    assert first.parameters == 64 * (27 + 1)
    assert first.multiply_adds == 32 * 32 * 64 * 27
    assert first.activation_bytes == 32 * 32 * 64 * 4
    convolutions = 1_769_472 + 28_311_552 + 42_467_328 + 56_623_104 + 37_748_736
    assert summary.multiply_adds == convolutions + 4096 * 1024 + 1024 * 1024 + 1024 * 10
    assert str(summary).count("\n") == len(summary.layers) + 4
    assert "7,506,762" in str(summary)


def test_running_statistics_are_counted_and_reported_as_not_trained():
    summary = nn.summary(models.alexnet_cifar10_bn(), (32, 32, 3))
    assert summary.trainable == 7_506_762 + 64 + 192 + 384 + 256 + 256
    assert summary.parameters - summary.trainable == 2 * (64 + 192 + 384 + 256 + 256)
    assert "2,304 of the parameters are not trained" in str(summary)


def test_a_summary_does_not_change_mode_statistics_or_generators():
    model = models.alexnet_cifar10_bn()
    before = gpucnn.default_generator().bit_generator.state["state"]["counter"].copy()
    mean = model[1].running_mean.data.copy()
    nn.summary(model, (32, 32, 3))
    assert model.training
    assert (model[1].running_mean.data == mean).all()
    assert (gpucnn.default_generator().bit_generator.state["state"]["counter"] == before).all()


def test_a_transposed_convolution_multiplies_each_pixel_of_its_input_with_each_filter():
    layer = nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2)
    (summary,) = nn.summary(nn.Sequential(layer), (5, 7, 4)).layers
    assert summary.output_shape == (11, 14, 6)
    assert summary.multiply_adds == 5 * 7 * 4 * 3 * 2 * 3
