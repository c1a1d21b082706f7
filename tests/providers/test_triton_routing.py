"""The routing and sorting kernels' logic, in Triton's interpreter; exp and bf16 on hardware are for the GPU tests."""

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

from .test_triton_quant import in_interpreter

pytest.importorskip("triton")


def test_every_router_equals_its_reference_in_the_interpreter() -> None:
    result = in_interpreter("triton_in_interpreter.py", "routing")
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "routing"}
    assert min(result["run"].values()) >= 10, result["run"]
    assert not result["wrong"], result["wrong"]


def test_ids_and_sorted_slots_are_exact_on_hard_rows() -> None:
    result = in_interpreter("routing_in_interpreter.py")
    assert result["run"] >= 25
    assert not result["wrong"], result["wrong"]


@pytest.mark.parametrize("arch", ["sm_90", "gfx90a", "gfx942", "gfx1100", "gfx1250"])
def test_tiles_hold_every_expert_once_and_a_slot_has_one_chunk(arch: str) -> None:
    from aiter_ops.providers.triton.tiles import routing as tiles

    machine = platform_for(arch)
    for groups, experts in ((1, 1), (1, 8), (1, 60), (8, 160), (1, 257), (16, 512), (1, 384), (1, 20000)):
        tile = tiles.route_tile(machine, experts, groups)
        assert tile.groups >= groups
        assert tile.size >= experts // groups
        for size in (tile.rows, tile.groups, tile.size, tile.num_warps):
            assert size & (size - 1) == 0
        assert tile.num_warps * machine.wave_size <= 1024
        assert tile.rows * tile.groups * tile.size <= tile.num_warps * machine.wave_size * 2 * tiles.MOST_EACH
    for experts in (1, 8, 60, 257, 512):
        kinds = set()
        for slots in (*range(1, 3000, 7), 4096, 32768, 131072, 10**6 + 1):
            sort = tiles.align_tile(machine, slots, experts)
            assert sort.chunks * sort.chunk >= slots > (sort.chunks - 1) * sort.chunk
            assert sort.chunk % sort.step == 0
            assert sort.step % sort.lines == 0
            assert sort.bins >= experts
            assert sort.chunks <= max(1, slots // sort.step, tiles.MOST_CHUNKS)
            alone = sort.chunk if sort.chunks == 1 else 0
            assert alone & (alone - 1) == 0
            assert sort.bins >= (machine.wave_size or 32)
            kinds.add((sort.step, sort.bins, sort.table, sort.lines, sort.num_warps, alone))
        assert len(kinds) <= 6, "compilations do not follow the number of slots"


def launches(name: str, *args: object) -> list[tuple[str, int]]:
    """Kernel and number of warps of each launch, in order."""
    from aiter_ops.providers.triton.launch import compiling_for

    op = aiter_ops.get_op(name)
    with compiling_for(platform_for("gfx942")) as jobs:
        op.implementations["triton"].fn(*op.bind(args, {})[0])
    return [(job.kernel.__name__, job.num_warps) for job in jobs]


def test_a_router_is_one_launch_and_sorting_one_or_two() -> None:
    assert launches("topk_softmax", torch.zeros(5, 256), 8, True) == [("route_kernel", 1)]
    assert launches("biased_grouped_topk", torch.zeros(5, 256), torch.zeros(256), 8, 8, 4, True) == [
        ("route_kernel", 1)
    ]
    ids = torch.zeros(2000, 8, dtype=torch.int32)
    assert [name for name, _ in launches("moe_align", ids[:32], 16, 256)] == ["place_kernel"]
    assert [name for name, _ in launches("moe_align", ids, 16, 256)] == ["count_kernel", "place_kernel"]


def test_sums_of_a_row_do_not_follow_the_number_of_rows() -> None:
    from aiter_ops.providers.triton.launch import compiling_for

    op = aiter_ops.get_op("topk_softmax")
    forms = set()
    for rows in (1, 2, 63, 4096):
        z = torch.zeros(rows, 72)
        with compiling_for(platform_for("gfx942")) as jobs:
            op.implementations["triton"].fn(*op.bind((z, 6, False), {})[0])
        forms.add((jobs[0].tensors, jobs[0].numbers[1:], jobs[0].constants, jobs[0].num_warps))
    assert len(forms) == 1
