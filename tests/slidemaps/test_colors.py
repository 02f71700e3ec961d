"""Colours say their numbers back, and classes can be told apart."""

import matplotlib as mpl
import numpy as np
import pytest
from skimage.color import rgb2lab

from histo_ssl.slidemaps.colors import Scale, palette


def test_the_ends_of_a_scale_have_the_ends_of_its_colours_and_so_has_what_lies_beyond() -> None:
    colors = Scale(colormap="viridis", low=-1.0, high=3.0).rgb(np.array([[-9.0, -1.0], [3.0, 9.0]]))
    np.testing.assert_array_equal(colors, [[[68, 1, 84]] * 2, [[253, 231, 37]] * 2])  # matplotlib's viridis


def test_256_steps_of_a_scale_are_matplotlibs_table() -> None:
    colors = Scale(colormap="cividis", low=0.0, high=255.0).rgb(np.arange(256.0))
    expected = np.round(255 * np.array(mpl.colormaps["cividis"].colors))
    np.testing.assert_array_equal(colors, expected)


def test_a_scale_gets_lighter_with_every_step_for_people_who_see_no_colours() -> None:
    colors = Scale(colormap="viridis", low=0.0, high=100.0).rgb(np.linspace(0, 100, 21))
    lightness = colors @ np.array([0.2126, 0.7152, 0.0722])
    assert np.diff(lightness).min() > 1


def test_classes_have_colours_of_their_own() -> None:
    lab = rgb2lab(palette(24) / 255)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 999 * np.eye(24)
    assert distance[:12, :12].min() > 26  # CIE 1976; about 2.3 is just noticeable
    assert distance.min() > 11
    np.testing.assert_array_equal(palette(3), [[0, 114, 178], [230, 159, 0], [0, 158, 115]])  # Okabe and Ito
    assert palette(0).shape == (0, 3)


def test_what_has_no_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="colormap=viridian is unknown"):
        Scale(colormap="viridian", low=0, high=1)
    with pytest.raises(ValueError, match="from 1 to 1"):
        Scale(colormap="viridis", low=1, high=1)
    with pytest.raises(ValueError, match="at most 24 are expected"):
        palette(25)
