"""What is said of a whole GPU: on the simulated one, and on a real one where there is one."""

import pytest

from gpucnn.device import Device
from gpucnn.errors import DeviceError


@pytest.fixture(params=["cudasim", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> str:
    """The name of each device that runs kernels, or the test is skipped aloud."""
    try:
        Device.parse(request.param)
    except DeviceError as error:
        pytest.skip(str(error).splitlines()[0])
    return request.param
