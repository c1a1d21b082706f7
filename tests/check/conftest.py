"""Where the kernels that these tests compile are kept."""

import os

import pytest


@pytest.fixture(scope="module")
def compiled_here(tmp_path_factory):
    """Where TRITON_CACHE_DIR says, else in a folder of this run that its workers share."""
    import triton

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = os.environ.get("TRITON_CACHE_DIR") or str(folder / "kernels")
        yield
