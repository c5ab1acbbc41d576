"""Reads arrays out of a file into memory of their own, and proves each against its digest.

Each array is read once, into memory that nothing else writes, and the digest is that of what was
read: what happens to the file afterwards, or in between, can change no value. The memory is
aligned so that JAX takes it over on a CPU without another copy.

The digest is the CRC-32 of each block of an array. It finds damage, not forgery: whoever can write
the file can write the digest too.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from moduli_interop._dtypes import storage_dtype
from moduli_interop._stored import StoredArray
from moduli_interop._workers import Workers

__all__ = [
    "BLOCK",
    "BlockRead",
    "SharedFile",
    "aligned_empty",
    "block_digest",
    "read_in_order",
]

BLOCK = 1 << 24
"""Bytes that share one digest."""

_ALIGNMENT = 64  # what XLA asks for on a CPU
_SMALL = 1 << 14
_BATCH = 1 << 22  # small arrays that one task reads
_MOST_TOGETHER = 1000  # pieces of memory that one call fills; systems take 1024
_AHEAD = 1 << 28  # bytes that may wait to be taken


class SharedFile:
    """An open file that several threads read at once; closed when nobody uses it any more.

    Args:
      path: the file.

    Attributes:
      path: the file.
      size: its length when it was opened.
      descriptor: its number for the system.
    """

    def __init__(self, path: str):
        self.path = path
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self.descriptor).st_size
        self._lock = threading.Lock()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:  # at the end of a program `os` may be gone
            close(self.descriptor)

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fills memory from an offset on; returns how many bytes there were."""
        done = 0
        if offset < 0:  # as a forged file may say
            return 0
        while done < len(target):
            count = self._read_some(target[done:], offset + done)
            if not count:
                break
            done += count
        return done

    def read_each(self, targets: list[memoryview], offset: int) -> bool:
        """Fills several pieces of memory from an offset on; returns whether all could be filled."""
        missing = sum(map(len, targets))
        if hasattr(os, "preadv"):
            missing -= os.preadv(self.descriptor, targets, offset)
            if not missing:
                return True
        for target in targets:  # the system gave less than was asked for
            if self.read_into(target, offset) < len(target):
                return False
            offset += len(target)
        return True

    def _read_some(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [target], offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            data = os.read(self.descriptor, len(target))
        target[: len(data)] = data
        return len(data)


def aligned_empty(nbytes: int) -> np.ndarray:
    """Returns memory for so many bytes, at an address that JAX can take over."""
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.__array_interface__["data"][0] % _ALIGNMENT
    return buffer[start : start + nbytes]


def block_digest(data: memoryview | bytes, start: int, block: int) -> int:
    """Returns the digest of a block of an array.

    Args:
      data: its bytes.
      start: what stands for the array; see ``layout``.
      block: which of its blocks it is.
    """
    return zlib.crc32(data, (start + block) & 0xFFFFFFFF)


class BlockRead:
    """Reads one array of a file; what a :class:`StoredArray` has as its ``read``.

    Args:
      file: the file.
      offset: where the array begins.
      array: what it is.
      digests: the CRC-32 of each block of :data:`BLOCK` bytes.
      start: what the CRC-32 of the first block begins with; each further one with one more.
      damaged: gives the exception to raise if a digest does not fit.
    """

    __slots__ = ("_damaged", "_digests", "_dtype", "_file", "_offset", "_shape", "_start", "nbytes")

    def __init__(
        self,
        file: SharedFile,
        offset: int,
        array: StoredArray,
        digests: Sequence[int],
        start: int,
        damaged: Callable[[], Exception],
    ):
        self._file = file
        self._offset = offset
        self._shape = array.shape
        self._dtype = storage_dtype(array.dtype)
        self._digests = digests
        self._start = start
        self._damaged = damaged
        self.nbytes = array.nbytes

    def __call__(self) -> np.ndarray:
        """Returns the array, in memory of its own."""
        if self.is_small:
            return self.small([self])[0]
        memory = self.memory()
        for block in range(len(self._digests)):
            self.fill(memory, block)
        return self.shaped(memory)

    def memory(self) -> np.ndarray:
        """Returns memory for the whole array."""
        return aligned_empty(self.nbytes)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._digests)

    def fill(self, memory: np.ndarray, block: int) -> None:
        """Reads one block to its place in memory, and proves it."""
        start = block * BLOCK
        self._read(memory.data[start : start + BLOCK], block)

    def shaped(self, memory: np.ndarray) -> np.ndarray:
        """Returns memory that is filled as the array."""
        return memory.view(self._dtype).reshape(self._shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads some entries of the first axis; proves the blocks in which they lie, no others."""
        row = self.nbytes // max(self._shape[0], 1)
        first, last = start * row // BLOCK, -(-stop * row // BLOCK)
        size = max(min(last * BLOCK, self.nbytes) - first * BLOCK, 0)
        memory = aligned_empty(size)
        for block in range(first, last):
            at = (block - first) * BLOCK
            self._read(memory.data[at : at + BLOCK], block)
        begin = start * row - first * BLOCK
        part = memory[begin : begin + (stop - start) * row]
        return part.copy().view(self._dtype).reshape(stop - start, *self._shape[1:])

    def verify(self) -> None:
        """Proves every block, with the memory of one."""
        memory = np.empty(min(BLOCK, self.nbytes), np.uint8)
        for block in range(len(self._digests)):
            size = min(BLOCK, self.nbytes - block * BLOCK)
            self._read(memory.data[:size], block)

    def _read(self, target: memoryview, block: int) -> None:
        count = self._file.read_into(target, self._offset + block * BLOCK)
        if count < len(target):
            raise self._damaged()
        self._prove(target, block)

    def _prove(self, data: memoryview, block: int) -> None:
        if block_digest(data, self._start, block) != self._digests[block]:
            raise self._damaged()

    @property
    def is_small(self) -> bool:
        """Whether it is read best together with others; alignment is not worth its price then."""
        return self.nbytes <= _SMALL and len(self._digests) == 1

    @staticmethod
    def small(reads: Sequence[BlockRead]) -> list[np.ndarray]:
        """Reads several small arrays, those that stand side by side in a file in one call.

        Args:
          reads: the arrays; each is small.

        Returns:
          Them, each in memory of its own.
        """
        memories = [np.empty(read.nbytes, np.uint8) for read in reads]
        pairs = zip(reads, (memory.data for memory in memories), strict=True)
        run: list[tuple[BlockRead, memoryview]] = []
        for pair in sorted(pairs, key=lambda pair: pair[0]._offset):
            if run and not (len(run) < _MOST_TOGETHER and run[-1][0]._is_before(pair[0])):
                BlockRead._read_run(run)
                run = []
            run.append(pair)
        if run:
            BlockRead._read_run(run)
        return [read.shaped(memory) for read, memory in zip(reads, memories, strict=True)]

    def _is_before(self, other: BlockRead) -> bool:
        return self._file is other._file and self._offset + self.nbytes == other._offset

    @staticmethod
    def _read_run(run: list[tuple[BlockRead, memoryview]]) -> None:
        first = run[0][0]
        if not first._file.read_each([target for _, target in run], first._offset):
            for read, target in run:
                read._read(target, 0)  # names the first that ends early
        for read, target in run:
            read._prove(target, 0)


def read_in_order(arrays: Sequence[StoredArray]) -> Iterator[np.ndarray]:
    """Reads arrays one after another, ahead of who takes them, in two threads.

    Args:
      arrays: the arrays.

    Yields:
      The bits of each, in order.
    """
    if sum(array.nbytes for array in arrays) < _BATCH:  # not worth a thread
        yield from _read_each(arrays)
        return
    with Workers() as pool:
        waiting: deque[_Task] = deque()
        ahead = 0
        for batch in _batches(arrays):
            task = _Task(pool, batch)
            waiting.append(task)
            ahead += task.nbytes
            while ahead > _AHEAD:
                task = waiting.popleft()
                yield from task.results()
                ahead -= task.nbytes
        while waiting:
            yield from waiting.popleft().results()


def _batches(arrays: Iterable[StoredArray]) -> Iterator[list[StoredArray]]:
    batch: list[StoredArray] = []
    size = 0
    for array in arrays:
        if array.nbytes > _BATCH:
            if batch:
                yield batch
            yield [array]
            batch, size = [], 0
            continue
        batch.append(array)
        size += array.nbytes
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Task:
    """A batch of arrays that is being read: several small ones, or the blocks of a large one."""

    def __init__(self, pool: Workers, arrays: list[StoredArray]):
        first = arrays[0].read
        self._read = first if len(arrays) == 1 and isinstance(first, BlockRead) else None
        self.nbytes = sum(array.nbytes for array in arrays)
        self._arrays = arrays
        self._futures: list[Future[Any]] = []
        if self._read is not None:
            self._memory = self._read.memory()
            self._futures = [
                pool.submit(self._read.fill, self._memory, block)
                for block in range(self._read.blocks)
            ]
        elif len(arrays) == 1:
            self._futures = [pool.submit(arrays[0].read_bits)]

    def results(self) -> list[np.ndarray]:
        if self._read is None:  # small ones are not worth a thread
            return [future.result() for future in self._futures] or _read_each(self._arrays)
        for future in self._futures:
            future.result()
        return [self._read.shaped(self._memory)]


def _read_each(arrays: Sequence[StoredArray]) -> list[np.ndarray]:
    reads = [array.read for array in arrays]
    small = [read for read in reads if isinstance(read, BlockRead) and read.is_small]
    found = iter(BlockRead.small(small))
    return [
        next(found) if isinstance(read, BlockRead) and read.is_small else array.read_bits()
        for read, array in zip(reads, arrays, strict=True)
    ]
