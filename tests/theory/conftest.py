"""Random positive-pair graphs for property tests: `st.from_type(PositivePairGraph)` draws one."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from companion.theory.graph import PositivePairGraph

settings.register_profile("theory", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("theory")


def random_graph(seed: int, images: int, views: int, sharpness: float) -> PositivePairGraph:
    """Draw a random augmentation law and prior; all degrees differ."""
    generator = torch.Generator().manual_seed(seed)
    K = torch.rand(images, views, generator=generator, dtype=torch.float64) ** sharpness + 1e-4
    prior = torch.rand(images, generator=generator, dtype=torch.float64) + 0.1
    return PositivePairGraph.from_augmentation(K / K.sum(1, keepdim=True), prior / prior.sum())


st.register_type_strategy(
    PositivePairGraph,
    st.builds(random_graph, st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(5, 14), st.floats(1.0, 8.0)),
)


@pytest.fixture
def generator() -> torch.Generator:
    """One seeded source of randomness a test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def graph() -> PositivePairGraph:
    """Fifteen images, twenty views of unequal degree."""
    return random_graph(seed=1, images=15, views=20, sharpness=4.0)
