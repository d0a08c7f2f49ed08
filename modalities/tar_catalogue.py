"""The indices of all shards of a dataset: found where they were left, or made, by any number of processes at once."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import random
import zlib
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from modalities.byte_ranges import Source
from modalities.tar_index import Looked, ShardIndex, write_index
from modalities.tar_members import BLOCK

THREADS = 8
LOCAL_BLOCK, REMOTE_BLOCK = 1 << 12, 1 << 22
"""Bytes read at a time while an index is made: local files skip media, and remote ones answer too slowly for that."""

REPORTED = 3
"""Shards that may fail before the others are not even tried, and that are named."""

EVERY = 30.0
"""Seconds between two lines about how far indexing is."""

log = logging.getLogger("multisagd")


def catalogue(sources: Sequence[Source], looked: Looked, folder: Path | None, keep: bool = True) -> list[ShardIndex]:
    """Return the index of each shard.

    Shards are taken in an order of this process's own, so that processes that start together share the work: each
    finds most indices made by others.

    Raises:
        ValueError: naming the shards that are damaged or cannot be read.
    """
    order = list(range(len(sources)))
    random.SystemRandom().shuffle(order)
    failed: dict[int, Exception] = {}
    done: dict[int, ShardIndex] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            pending: dict[Future[ShardIndex], int] = {
                pool.submit(indexed, sources[place], looked, folder, keep): place for place in order
            }
            while pending and len(failed) < REPORTED:
                finished, _ = wait(pending, EVERY, FIRST_COMPLETED)
                if not finished:
                    log.warning("indexing shards, which is done once: %d of %d", len(done), len(sources))
                for future in finished:
                    place = pending.pop(future)
                    try:
                        done[place] = future.result()
                    except (OSError, ValueError) as error:
                        failed[place] = error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        told = "; ".join(str(failed[place]) for place in sorted(failed)[:REPORTED])
        raise ValueError(f"{told}. Restore what is damaged or missing, or leave it out of urls")
    return [done[place] for place in range(len(sources))]


def indexed(source: Source, looked: Looked, folder: Path | None, keep: bool = True) -> ShardIndex:
    """Return the index of a shard: one that was left for it and still fits, or a new one, left there if `keep` is True.

    It is looked for beside a local shard and in `folder`, by default one of the user's own for what cannot be written
    beside the shard. Beside a remote shard it is only read: one uploaded with the shard belongs to it if size and last
    header agree.

    Raises:
        OSError: if the shard cannot be read.
        ValueError: naming the shard and what is wrong in it.
    """
    size, state = source.state()
    places = index_places(source, looked, folder)
    for place in places:
        index = _unpacked(place)
        if index is not None and (index.length, index.state) == (size, state):
            return index
    if not source.local and (index := _uploaded(source, looked, size)) is not None:
        return index
    try:
        index = ShardIndex.build(source.read, size, state, looked, LOCAL_BLOCK if source.local else REMOTE_BLOCK)
    except ValueError as error:
        raise ValueError(f"{source.url}: {error}") from error
    if not keep:
        return index
    for place in places:
        try:
            write_index(place, index.pack())
            break
        except OSError:
            continue  # read-only: the next place, or else it is made again the next time
    else:
        log.warning("the index of %s could be kept nowhere: set data.index to a folder that can be written", source.url)
    return index


def index_places(source: Source, looked: Looked, folder: Path | None) -> list[Path]:
    """Return the files that may hold the index of a shard, the first choice first."""
    name = posixpath.basename(source.path)
    # Shards of one name may lie in many places.
    where = hashlib.sha256(source.url.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    kept = (folder or _cache()) / f"{name[:150]}.{where}.{looked.key}.index"
    return [Path(f"{source.path}.{looked.key}.index"), kept] if source.local and folder is None else [kept]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multisagd" / "index"


def _unpacked(path: Path) -> ShardIndex | None:
    try:
        return ShardIndex.unpack(path.read_bytes())
    except (OSError, ValueError):
        return None


def _uploaded(source: Source, looked: Looked, size: int) -> ShardIndex | None:
    try:
        index = ShardIndex.unpack(bytes(source.system.cat_file(f"{source.path}.{looked.key}.index")))
    except Exception:  # most have none, and every storage says so in its own way
        return None
    if index.length != size:
        return None
    last = [int(header) for header in index.header[-1:]]
    heads = [zlib.crc32(source.read(header, header + BLOCK)) for header in last]
    return index if heads == index.crc[-1:].tolist() else None
