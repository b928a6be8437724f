"""Every number of the lecture, as its slides print it."""

from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def lecture():
    return load_script(EXAMPLES / "lecture.py")


def numbers(text):
    return [[int(number) for number in row.split()] for row in text.strip().splitlines()]


EIGHT = """
    6 3 4 2 5 0 1 7
    3 0 9 8 7 5 4 4
    7 0 1 3 5 0 3 2
    2 4 0 1 2 8 4 2
    3 0 4 0 3 2 1 0
    4 2 1 6 5 0 8 1
    0 2 4 4 1 5 6 8
    0 5 3 1 2 0 3 0
"""


# --- the formula ---


@pytest.mark.parametrize(("d", "p"), [(1, 1), (3, 4)])
def test_the_slides_formula_is_what_conv2d_computes(d, p, lecture, rng):
    h = rng.integers(-4, 5, (7, 6, d)).astype(np.float32)
    w = rng.integers(-4, 5, (3, 3, d, p)).astype(np.float32)
    by_hand = lecture.convolve_by_hand(h, w)
    filters = lecture.gpucnn.tensor(np.ascontiguousarray(w.transpose(3, 0, 1, 2)))
    assert by_hand.shape == (5, 4, p)
    assert np.array_equal(
        lecture.ops.conv2d(lecture.gpucnn.tensor(h[None]), filters).numpy()[0], by_hand
    )


def test_the_formula_on_a_small_example_computed_by_hand(lecture):
    h = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)[..., None]
    w = np.array([[1, 0], [0, 2]], np.float32)[..., None, None]
    assert lecture.convolve_by_hand(h, w)[..., 0].tolist() == [[11, 14], [20, 23]]


# --- the letter M ---

FOUND = {
    "M": {
        "falling stroke": """
            2 0 0 0 1 1 1
            1 3 0 1 0 2 1
            1 1 3 0 1 1 2
            1 1 0 2 0 2 1
            1 1 0 0 1 1 1
            1 1 0 0 0 1 1
            1 1 0 0 0 0 1
        """,
        "rising stroke": """
            1 1 1 0 0 0 2
            1 2 0 1 0 3 1
            2 1 1 0 3 1 1
            1 2 0 2 0 1 1
            1 1 1 0 0 1 1
            1 1 0 0 0 1 1
            1 0 0 0 0 1 1
        """,
        "meeting point": """
            1 0 0 0 0 0 1
            1 2 0 0 0 2 1
            2 1 2 0 2 1 2
            1 2 0 3 0 2 1
            1 1 1 0 1 1 1
            1 1 0 0 0 1 1
            1 1 0 0 0 1 1
        """,
    },
    "deformed M": {
        "falling stroke": """
            0 2 0 1 0 2 0
            1 1 2 1 1 1 2
            1 1 2 1 1 2 1
            1 1 0 2 0 2 1
            1 1 0 0 1 1 1
            1 1 0 0 0 1 1
            1 1 0 0 0 0 1
        """,
        "rising stroke": """
            0 2 0 1 0 2 0
            2 1 1 1 2 1 1
            1 2 1 1 2 1 1
            1 2 0 2 0 1 1
            1 1 1 0 0 1 1
            1 1 0 0 0 1 1
            1 0 0 0 0 1 1
        """,
        "meeting point": """
            0 1 0 0 0 1 0
            2 0 2 0 2 0 2
            1 2 1 2 1 2 1
            1 2 0 3 0 2 1
            1 1 1 0 1 1 1
            1 1 0 0 0 1 1
            1 1 0 0 0 1 1
        """,
    },
}


def test_both_letters_are_the_slides_grids(lecture):
    assert lecture.M.tolist() == numbers("""
        0 0 0 0 0 0 0 0 0
        0 1 0 0 0 0 0 1 0
        0 1 1 0 0 0 1 1 0
        0 1 0 1 0 1 0 1 0
        0 1 0 0 1 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 0 0 0 0 0 0 0 0
    """)
    assert lecture.DEFORMED_M.tolist() == numbers("""
        0 0 0 0 0 0 0 0 0
        0 0 1 0 0 0 1 0 0
        0 1 0 1 0 1 0 1 0
        0 1 0 1 0 1 0 1 0
        0 1 0 0 1 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 1 0 0 0 0 0 1 0
        0 0 0 0 0 0 0 0 0
    """)


@pytest.mark.parametrize("letter", FOUND)
def test_each_feature_map_of_each_letter_is_7_by_7_and_has_its_numbers(letter, lecture):
    maps = lecture.find_strokes(lecture.LETTERS[letter])
    assert {name: feature_map.tolist() for name, feature_map in maps.items()} == {
        name: numbers(text) for name, text in FOUND[letter].items()
    }


def test_the_filters_find_the_strokes_of_the_m_at_their_positions(lecture):
    maps = lecture.find_strokes(lecture.M)
    full = {name: np.argwhere(m == 3).tolist() for name, m in maps.items()}
    assert full == {
        "falling stroke": [[1, 1], [2, 2]],
        "rising stroke": [[1, 5], [2, 4]],
        "meeting point": [[3, 3]],
    }


def test_the_filters_still_find_the_deformed_m(lecture):
    maps = lecture.find_strokes(lecture.DEFORMED_M)
    assert all(m.max() >= 2 for m in maps.values())
    assert np.argwhere(maps["meeting point"] == 3).tolist() == [[3, 3]]
    upright = np.zeros((9, 9), np.float32)
    upright[1:8, (1, 7)] = 1  # the letter without its strokes
    assert max(m.max() for m in lecture.find_strokes(upright).values()) == 1


# --- strides, padding, pooling ---


def test_stride_2_keeps_every_second_position_of_stride_1(lecture):
    assert lecture.NUMBERS.tolist() == numbers(EIGHT)
    maps = lecture.strides()
    assert maps["stride 1"].tolist() == numbers("""
        33 30 44 35 30 26
        26 26 36 39 38 32
        21 13 19 24 28 22
        20 18 22 27 33 26
        20 23 28 26 31 31
        21 28 27 24 30 31
    """)
    assert maps["stride 2"].tolist() == numbers("33 44 30 \n 21 19 28 \n 20 28 31")


def test_padding_by_2_makes_12_by_12(lecture):
    assert lecture.padding()["padded by 2"].tolist() == numbers("""
        0 0 0 0 0 0 0 0 0 0 0 0
        0 0 0 0 0 0 0 0 0 0 0 0
        0 0 6 3 4 2 5 0 1 7 0 0
        0 0 3 0 9 8 7 5 4 4 0 0
        0 0 7 0 1 3 5 0 3 2 0 0
        0 0 2 4 0 1 2 8 4 2 0 0
        0 0 3 0 4 0 3 2 1 0 0 0
        0 0 4 2 1 6 5 0 8 1 0 0
        0 0 0 2 4 4 1 5 6 8 0 0
        0 0 0 5 3 1 2 0 3 0 0 0
        0 0 0 0 0 0 0 0 0 0 0 0
        0 0 0 0 0 0 0 0 0 0 0 0
    """)


def test_valid_pads_nothing_and_same_keeps_the_size(lecture):
    maps = lecture.padding()
    assert maps["valid"].shape == (6, 6)
    assert maps["same"].shape == (8, 8)
    assert np.array_equal(maps["same"][1:-1, 1:-1], maps["valid"])
    assert maps["same"].tolist() == numbers("""
        12 25 26 35 27 22 21 16
        19 33 30 44 35 30 26 21
        16 26 26 36 39 38 32 19
        16 21 13 19 24 28 22 12
        15 20 18 22 27 33 26 16
        11 20 23 28 26 31 31 24
        13 21 28 27 24 30 31 26
         7 14 19 15 13 17 22 17
    """)


def test_max_pooling_gives_the_slides_result(lecture):
    corner, pooled = lecture.pooling().values()
    assert corner.tolist() == [row[:7] for row in numbers(EIGHT)[:7]]
    assert pooled.tolist() == [[9, 9, 7], [7, 5, 8], [4, 6, 8]]


# --- images as matrices ---


def test_images_are_matrices_of_0_to_255(lecture):
    colour = lecture.colour_image()
    assert colour.shape == (8, 8, 3)
    assert colour.dtype == np.uint8
    assert (colour.min(), colour.max()) == (0, 255)


def test_the_handwritten_digit_has_the_slides_28_by_28_numbers(lecture):
    digit = lecture.handwritten_digit()
    assert digit.shape == (28, 28)
    assert digit.dtype == np.uint8
    assert digit[7].tolist() == [0] * 15 + [215, 255, 255, 250] + [0] * 9
    assert digit[15].tolist() == [
        0, 0, 0, 0, 0, 0, 0, 199, 255, 130, 70, 190, 255, 250, 130, 20, 255, 230,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]  # fmt: skip
    assert digit[26].tolist() == [0] * 11 + [255] + [0] * 16
    assert not digit[:7].any()
    assert not digit[27].any()


# --- the script ---


def test_the_script_prints_every_matrix(lecture, capsys):
    assert lecture.main([]) == 0
    out = capsys.readouterr().out
    assert "max pooling, 3x3:\n  9 9 7\n  7 5 8\n  4 6 8\n" in out
    assert "stride 2, 3x3:\n  33 44 30\n" in out
    assert "strongest: 3 of 3, at (row, column) (4, 4)" in out
    assert "A handwritten digit, 28x28:" in out
    assert "padded by 2, 12x12:" in out


def test_the_script_draws_every_matrix(lecture, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert lecture.main(["--out", str(tmp_path / "pictures")]) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        "colour_image.png", "deformed_m.png", "filters.png", "handwritten_digit.png",
        "letter_m.png", "padding.png", "pooling.png", "strides.png",
    }  # fmt: skip
    assert all((tmp_path / "pictures" / name).read_bytes()[:4] == b"\x89PNG" for name in names)


def test_a_folder_that_cannot_be_created_or_written_is_a_one_line_error(lecture, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    (tmp_path / "file").write_text("")
    assert lecture.main(["--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr()
    assert "max pooling, 3x3:" in said.out
    assert f"error: --out: {tmp_path / 'file'} cannot be created" in said.err
    (tmp_path / "out" / "strides.png").mkdir(parents=True)
    assert lecture.main(["--out", str(tmp_path / "out")]) == 2
    assert "strides.png cannot be written (Is a directory)" in capsys.readouterr().err


def luminance(colour):
    """Relative luminance by the definition of WCAG 2, of (red, green, blue) in 0 ... 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_number_stands_out_from_its_cell(lecture):
    """WCAG 2 requires a contrast of at least 3."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from matplotlib.colors import to_rgb

    seen = 0
    for panels, columns in lecture.figures().values():
        for axes in lecture.draw(panels, columns).axes:
            (image,) = axes.images
            for text in axes.texts:
                column, row = text.get_position()
                cell = image.to_rgba(image.get_array())[row, column]
                pair = sorted((luminance(cell), luminance(to_rgb(text.get_color()))))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3, (axes.get_title(), text.get_text())
                seen += 1
    assert seen > 1000
