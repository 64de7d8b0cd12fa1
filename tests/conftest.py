"""Under pytest the shapes in annotations are checked at run time, except where a test is marked `unchecked`."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def shapes_checked_unless_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switch the run-time checks off for a test marked ``unchecked``: it is about what a user sees without them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("unchecked") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
