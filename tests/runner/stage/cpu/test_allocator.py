from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from runner.stage.cpu import packed_matrix
from runner.stage.cpu.allocator import give_back
from runner.stage.cpu.packed_matrix import PackedMatrix, supported

RESIDENT = """
import torch
from runner.stage.cpu.allocator import freed_memory_is_given_back, give_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

with freed_memory_is_given_back():
    before = resident()
    blocks = [torch.ones(4 * 2**20) for _ in range(8)]
    full = resident() - before
    give_back(blocks[0])
    one_less = resident() - before
    del blocks
    print(full, one_less, resident() - before)
"""

# The matrix is tiny: what grows is what oneDNN and torch keep for each number of rows.
EVERY_NUMBER_OF_ROWS = """
import torch
from runner.stage.cpu.allocator import give_back_freed
from runner.stage.cpu.packed_modules import pack_weights

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
pack_weights(model)
rows = torch.zeros(900, 64)
before = resident()
with torch.inference_mode():
    for count in range(1, 901):
        model(rows[:count])
busy = resident() - before
give_back_freed()
print(busy, resident() - before)
"""


def resident_bytes(script: str) -> list[int]:
    """What a fresh process prints: the resident memory it gained, at several points."""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [int(word) for word in ran.stdout.split()]


def test_memory_goes_back_to_the_system():
    full, one_less, after = resident_bytes(RESIDENT)
    assert full > 120 * 2**20
    assert one_less < full - 15 * 2**20
    assert after < 8 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not supported(), reason="this torch has no packed linear layers")
def test_prepared_kernels_are_bounded_and_freed_ones_are_given_back():
    busy, idle = resident_bytes(EVERY_NUMBER_OF_ROWS)
    assert busy < 340 * 2**20  # about 530 MiB without a bound
    assert idle < 220 * 2**20


def test_only_the_pages_of_the_tensor_are_given_back():
    whole = torch.ones(1000, 1000)
    give_back(whole[400:600])
    assert whole[:400].eq(1).all()
    assert whole[600:].eq(1).all()


@pytest.mark.skipif(not supported(), reason="this torch has no packed linear layers")
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 300)])
def test_a_consumed_matrix_gives_the_results_of_a_whole_one(bias, monkeypatch):
    monkeypatch.setattr(packed_matrix, "CONSUMED_BLOCK_BYTES", 64 * 1024)
    dense, rows = torch.randn(300, 256), torch.randn(5, 256)
    whole = PackedMatrix(dense.clone()).apply(rows, bias)
    blocks = PackedMatrix(dense.clone(), consumed=True)
    torch.testing.assert_close(blocks.apply(rows, bias), whole)
    assert blocks.bytes_packed == dense.nbytes
    for row in range(5):
        assert torch.equal(
            blocks.apply(rows[row : row + 1], bias)[0], blocks.apply(rows, bias)[row]
        )
