"""Compare loading from tar shards and from a folder of the same files, and watch memory during a long stream.

Run on an idle machine: `python -m benchmarks.streaming`. Files are JPEG of 640×480, packed by `multisagd pack`.
All methods read batches of random examples in turn, with --threads threads, so that ratios are paired: the folder
(`Folder.batch`), shards on the same disk, and the same shards through fsspec, from memory (`memory://`: what fsspec
costs without a network) and from a web server in this process (`http://`, which uses the same processor).
Everything is in the page cache: the cost of a network or a cold disk is not measured here.

Then --examples examples are streamed from the local shards in the order of training, --workers batches ahead. The
memory of this process is printed ten times, with its slope over all but the first two values. Finally the consumer
pauses for --pause seconds, during which only these batches may be read ahead.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import linear_regression
from typing import Any

import fsspec
import torch

from benchmarks.loading import SIZE, make_images, resident
from benchmarks.timing import interleave, machine, milliseconds, ratio
from modalities.base import Batch
from modalities.files import Folder
from modalities.image import Image
from modalities.reading import MediaFiles
from modalities.tars import TarShards
from recipes.config import compose as configuration
from recipes.data.order import Order, prefetch
from recipes.pack import pack


class Ranges(SimpleHTTPRequestHandler):
    """Serves byte ranges of files, like object storage."""

    protocol_version = "HTTP/1.1"
    wanted: tuple[int, int] | None = None

    def do_GET(self) -> None:
        """Send the requested range, or the whole file."""
        data = Path(self.translate_path(self.path)).read_bytes() if "." in self.path else b""
        first, last = (self.headers.get("Range") or f"bytes=0-{len(data) - 1}").removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def measure(ways: dict[str, MediaFiles], options: argparse.Namespace) -> None:
    """Print the rate of each method, and its time relative to the folder."""
    turns = dict.fromkeys(ways, 0)

    def batch(name: str) -> Batch:
        turns[name] += 1
        draw = random.Random(turns[name])
        indices = [draw.randrange(len(ways[name])) for _ in range(options.batch)]
        return ways[name].batch(indices, draw.sample(range(2**31), options.batch))

    times = interleave({name: partial(batch, name) for name in ways}, options.repeats, warm_up=1)
    for name in ways:
        rate = 1e3 * options.batch / milliseconds(times, name)
        print(f"  {name:<7} {rate:7.1f} items per second; time relative to the folder: {ratio(times, name, 'folder')}")


def stream(data: TarShards, options: argparse.Namespace) -> None:
    """Print the memory used while a long stream is read, and the number of batches read ahead during a pause."""
    order, read = Order(len(data), 0, data.groups), [0]

    def fetch(start: int) -> Batch:
        read[0] += 1
        return data.batch(order.indices(start, options.batch), range(start, start + options.batch))

    marks: list[tuple[int, float]] = []
    steps = options.examples // options.batch
    batches = prefetch(fetch, range(0, (steps + 1) * options.batch, options.batch), options.workers)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        next(batches)
        if step * 10 // steps > len(marks):
            marks.append((step * options.batch, resident()))
            print(f"  {marks[-1][0]:>7} examples: {marks[-1][1]:.1f} MB", flush=True)
        if step == steps // 2:
            time.sleep(options.pause)
            print(
                f"  after a pause of {options.pause:g} s: {read[0] - step} batches are read ahead, {resident():.1f} MB"
            )
    slope = linear_regression([count for count, _ in marks[2:]], [held for _, held in marks[2:]]).slope
    seconds = time.perf_counter() - began - options.pause
    print(f"  slope: {1000 * slope:+.3f} MB per 1,000 examples; {steps * options.batch / seconds:.0f} per second")


def main() -> None:
    """Print throughput and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="files to write (300)")
    parser.add_argument("--batch", type=int, default=32, help="items in a batch (32)")
    parser.add_argument("--repeats", type=int, default=20, help="paired repeats, at least 2 (20)")
    parser.add_argument("--threads", type=int, default=4, help="threads that read a batch (4)")
    parser.add_argument("--examples", type=int, default=20000, help="examples to stream (20000)")
    parser.add_argument("--workers", type=int, default=2, help="batches read ahead (2)")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds for which the consumer pauses (2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"batches of {options.batch}, {options.repeats} interleaved repeats, {options.threads} threads\n")
    with tempfile.TemporaryDirectory() as temporary:
        photos, shards = Path(temporary, "photos"), Path(temporary, "shards")
        photos.mkdir()
        make_images(photos, options.files)
        pack(configuration.load("pack", [f"data.root={photos}", f"run_dir={shards}", "shard_bytes=2000000"]))
        memory = fsspec.filesystem("memory")
        for path in shards.iterdir():
            memory.pipe_file(f"/bench/{path.name}", path.read_bytes())
        count = len(list(shards.glob("*.tar")))
        image = Image(size=SIZE)
        more: dict[str, Any] = {"threads": options.threads, "index": Path(temporary, "index")}
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(shards))) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/{{000000..{count - 1:06d}}}.tar"
            ways: dict[str, MediaFiles] = {
                "folder": Folder(image, photos, labels="none", threads=options.threads),
                "shards": TarShards(image, str(shards), threads=options.threads),
                "memory": TarShards(image, "memory://bench/*.tar", **more),
                "http": TarShards(image, address, **more),
            }
            print(f"{options.files} files in {count} shards:")
            measure(ways, options)
            server.shutdown()
        del ways
        memory.rm("/bench", recursive=True)
        print(f"\nstreaming {options.examples} examples, {options.workers} batches ahead:")
        stream(TarShards(image, str(shards), threads=options.threads), options)


if __name__ == "__main__":
    main()
