"""The indices of all shards of a dataset: loading them, or building them in any number of concurrent processes."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import random
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from modalities.byte_ranges import PERMANENT, AccessError, Source
from modalities.tar_index import ScanOptions, ShardIndex, write_index
from modalities.tar_members import BLOCK
from modalities.user_cache import user_cache

THREADS = 8
LOCAL_BLOCK, REMOTE_BLOCK = 1 << 12, 1 << 22
"""Bytes per read while indexing: few for local files, whose media are skipped; many for slow remote files."""

MAX_FAILED = 3
"""Number of failed shards after which indexing stops; the message names them."""

PROGRESS_SECONDS = 30.0
"""Seconds between two progress messages while indexing."""

log = logging.getLogger("multisagd")


def catalogue(
    sources: Sequence[Source], options: ScanOptions, folder: Path | None, keep: bool = True
) -> list[ShardIndex]:
    """Return the index of each shard.

    Each process handles shards in its own random order, so processes that start together share the work: most of
    the indices that each one needs have been built by others.

    Raises:
        ValueError: If shards are damaged or cannot be read; the message names them.
    """
    order = list(range(len(sources)))
    random.SystemRandom().shuffle(order)
    failed: dict[int, Exception] = {}
    done: dict[int, ShardIndex] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            pending: dict[Future[ShardIndex], int] = {
                pool.submit(indexed, sources[shard], options, folder, keep): shard for shard in order
            }
            while pending and len(failed) < MAX_FAILED:
                finished, _ = wait(pending, PROGRESS_SECONDS, FIRST_COMPLETED)
                if not finished:
                    log.warning("indexing shards (done only once): %d of %d", len(done), len(sources))
                for future in finished:
                    shard = pending.pop(future)
                    try:
                        done[shard] = future.result()
                    except (OSError, ValueError) as error:
                        failed[shard] = error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        failures = "; ".join(str(failed[shard]) for shard in sorted(failed)[:MAX_FAILED])
        raise ValueError(f"{failures}{_remedy(failed.values())}")
    return [done[shard] for shard in range(len(sources))]


def _remedy(errors: Iterable[Exception]) -> str:
    """Return what to do about shards that failed; how to obtain access is in the message itself."""
    others = [error for error in errors if not isinstance(error, AccessError)]
    if not others:
        return ""
    if all(isinstance(error, OSError) and not isinstance(error.__cause__, PERMANENT) for error in others):
        return ". Run the same command again once the storage can be reached"
    return ". Restore the damaged or missing shards, or remove them from urls"


def indexed(source: Source, options: ScanOptions, folder: Path | None, keep: bool = True) -> ShardIndex:
    """Return the index of a shard: a stored one that still matches, or a new one, which is stored if `keep` is True.

    Stored indices are searched for in `folder` or, if it is None, next to a local shard and in the user's cache folder.
    An index next to a remote shard is only read, never written; it is used if the size and the last
    header of the shard match.

    Raises:
        OSError: If the shard cannot be read.
        ValueError: If the shard is invalid; the message names the shard and the problem.
    """
    size, state = source.state()
    paths = index_paths(source, options, folder)
    for path in paths:
        index = _unpacked(path)
        if index is not None and (index.length, index.state) == (size, state):
            return index
    if not source.local and (index := _uploaded(source, options, size)) is not None:
        return index
    try:
        index = ShardIndex.build(source.read, size, state, options, LOCAL_BLOCK if source.local else REMOTE_BLOCK)
    except ValueError as error:
        raise ValueError(f"{source.url}: {error}") from error
    if not keep:
        return index
    for path in paths:
        try:
            write_index(path, index.pack())
            break
        except OSError:
            continue  # read-only: try the next path; if none is writable, the index is rebuilt next time
    else:
        log.warning("the index of %s could not be stored: set data.index to a writable folder", source.url)
    return index


def index_paths(source: Source, options: ScanOptions, folder: Path | None) -> list[Path]:
    """Return the paths at which the index of a shard may be stored, preferred first."""
    name = posixpath.basename(source.path)
    # Shards in different folders may have the same name.
    url_hash = hashlib.sha256(source.url.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    kept = (folder or user_cache("index")) / f"{name[:150]}.{url_hash}.{options.key}.index"
    return [Path(f"{source.path}.{options.key}.index"), kept] if source.local and folder is None else [kept]


def _unpacked(path: Path) -> ShardIndex | None:
    try:
        return ShardIndex.unpack(path.read_bytes())
    except (OSError, ValueError):
        return None


def _uploaded(source: Source, options: ScanOptions, size: int) -> ShardIndex | None:
    try:
        index = ShardIndex.unpack(bytes(source.system.cat_file(f"{source.path}.{options.key}.index")))
    except Exception:  # most shards have no index, and each storage system raises its own errors
        return None
    if index.length != size:
        return None
    last = [int(header) for header in index.header[-1:]]
    heads = [zlib.crc32(source.read(header, header + BLOCK)) for header in last]
    return index if heads == index.crc[-1:].tolist() else None
