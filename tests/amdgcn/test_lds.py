"""Which accesses to LDS are races, against a model that keeps a few words for every byte."""

import numpy as np
import pytest

from aiter_ops.amdgcn import EmulationError
from aiter_ops.amdgcn.lds import Lds

BYTES, WAVES = 32, 3


class Model:
    """Of one workgroup: who wrote each byte last and who read it since the last barrier."""

    def __init__(self) -> None:
        self.data = [0] * BYTES
        self.writer: list[int | None] = [None] * BYTES
        self.readers: list[set[int]] = [set() for _ in range(BYTES)]

    def read(self, waves: list[int], first: list[int], size: int) -> bool:
        """Whether that is allowed."""
        for wave, start in zip(waves, first, strict=True):
            if any(self.writer[i] not in (None, wave) for i in range(start, start + size)):
                return False
        for wave, start in zip(waves, first, strict=True):
            for i in range(start, start + size):
                self.readers[i].add(wave)
        return True

    def write(self, waves: list[int], first: list[int], new: np.ndarray) -> bool:
        size = new.shape[1]
        places = [
            (w, start + i, int(new[k, i]))
            for k, (w, start) in enumerate(zip(waves, first, strict=True))
            for i in range(size)
        ]
        for wave, i, value in places:
            if self.readers[i] - {wave} or (self.writer[i] not in (None, wave) and self.data[i] != value):
                return False
        # lanes of other waves that write other values in the same step
        for wave, i, value in places:
            if any(j == i and other != wave and v != value for other, j, v in places):
                return False
        for wave, i, value in places:
            self.data[i], self.writer[i] = value, wave
        return True


@pytest.mark.parametrize("seed", range(60))
def test_races(seed):
    """Steps of one to four lanes of any waves, of 1 to 16 bytes, few values so that equal ones meet; up to the first race."""
    random = np.random.default_rng(seed)
    lds, model = Lds(1, BYTES), Model()
    for _ in range(40):
        if random.random() < 0.25:
            lds.barrier(np.zeros(1, np.int64))
            model.writer, model.readers = [None] * BYTES, [set() for _ in range(BYTES)]
        size = int(random.choice([1, 2, 4, 8, 16]))
        lanes = int(random.integers(1, 5))
        waves = random.integers(0, WAVES if random.random() < 0.4 else 1, lanes)
        first = random.integers(0, BYTES // size, lanes) * size
        group = np.zeros(lanes, np.int64)
        if random.random() < 0.5:
            allowed, access = model.read(waves.tolist(), first.tolist(), size), (lds.read, size)
        else:
            new = np.full((lanes, size), random.integers(0, 2), np.uint8)
            if random.random() < 0.5:  # what other waves write is another value
                new = (new + waves[:, None]).astype(np.uint8)
            allowed, access = model.write(waves.tolist(), first.tolist(), new), (lds.write, new)
        if not allowed:
            with pytest.raises(EmulationError, match="barrier"):
                access[0](group, waves, first, access[1])
            return
        done = access[0](group, waves, first, access[1])
        if done is not None:
            assert done.tolist() == [model.data[s : s + size] for s in first.tolist()]
