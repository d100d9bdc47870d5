"""The networks on which benchmarks run."""

from torch import nn


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def small() -> nn.Module:
    """A hundred tensors, with no biases between them, which constraints and penalties leave alone."""
    return nn.Sequential(*(nn.Linear(44, 44, bias=False) for _ in range(100)))


def million() -> nn.Module:
    return nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))


def medium() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64)]
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        for first, second in ((inputs, outputs), (outputs, outputs), (outputs, outputs), (outputs, outputs)):
            layers += [nn.Conv2d(first, second, 3, bias=False), nn.BatchNorm2d(second)]
    return nn.Sequential(*layers, nn.Linear(512, 1000))


def large(blocks: int = 12) -> nn.Module:
    sides = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    return nn.Sequential(*(nn.Sequential(nn.LayerNorm(768), *(nn.Linear(*s) for s in sides)) for _ in range(blocks)))


NETWORKS = {"tiny": tiny, "small": small, "medium": medium, "large": large}
ONE_BLOCK = {
    "tiny": tiny,
    "small": small,
    "medium": lambda: nn.Sequential(*(nn.Conv2d(128, 128, 3, bias=False) for _ in range(3))),
    "large": lambda: large(1),
}
