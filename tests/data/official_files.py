"""Write files in the official formats, with fewer images."""

import io
import pickle
import struct

import numpy as np

COUNT = 12  # images in a file


class _Python2(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: byte strings only, and NumPy's old module names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def _string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        if len(raw) < 256:
            self.write(b"U" + bytes([len(raw)]) + raw)
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = _string


def python2_pickle(value):
    buffer = io.BytesIO()
    _Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def images_and_labels(count, classes, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return images, generator.integers(0, classes, count)


def planes(images):
    """Images in the files' layout: a red, a green and a blue plane, flattened."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def python_batch(images, labels, key=b"labels"):
    return {
        b"batch_label": b"a batch",
        key: [int(label) for label in labels],
        b"data": planes(images),
        b"filenames": [b"picture_%d.png" % i for i in range(len(images))],
    }
