"""Take a file or folder to another machine in parts: packed, cut, joined again, and checked.

    python gpu/carry.py pack MODEL parts --size 30      # writes parts/0000 ... and parts/checksum
    python gpu/carry.py unpack parts there              # writes there/MODEL, or says what is wrong

Parts may arrive in several visits; ``unpack`` wants all of them, and refuses what is not what was packed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tarfile
from pathlib import Path

CHECKSUM = "checksum"
MIB = 1024 * 1024


class Parts:
    """A stream that is written into files of a size each."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._waiting = bytearray()
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self._waiting += data
        while len(self._waiting) >= self._size:
            self._cut(self._size)
        return len(data)

    def close(self) -> None:
        if self._waiting:
            self._cut(len(self._waiting))
        (self._folder / CHECKSUM).write_text(f"{self.count} {self._hash.hexdigest()}\n", encoding="ascii")

    def _cut(self, size: int) -> None:
        part = bytes(self._waiting[:size])
        del self._waiting[:size]
        self._hash.update(part)
        (self._folder / f"{self.count:04d}").write_bytes(part)
        self.count += 1


class Joined:
    """Those files as one stream again."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)
        self._part = io.BytesIO()

    def read(self, size: int) -> bytes:
        data = self._part.read(size)
        while len(data) < size and (path := next(self._paths, None)):
            self._part = io.BytesIO(path.read_bytes())
            data += self._part.read(size - len(data))
        return data


def pack(what: Path, folder: Path, megabytes: float) -> int:
    """Write a file or folder as parts of so many MiB, and return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"carry: {folder}: is not empty")
    parts = Parts(folder, int(megabytes * MIB))
    with tarfile.open(fileobj=parts, mode="w|") as archive:
        archive.add(what, what.name)
    parts.close()
    return parts.count


def unpack(folder: Path, to: Path) -> None:
    """Put together what ``pack`` wrote."""
    try:
        count, wanted = (folder / CHECKSUM).read_text(encoding="ascii").split()
    except (OSError, ValueError) as error:
        raise SystemExit(f"carry: {folder / CHECKSUM}: missing or damaged") from error
    paths = [folder / f"{index:04d}" for index in range(int(count))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SystemExit(f"carry: {folder}: {len(missing)} of {count} parts are missing ({', '.join(missing[:5])} ...)")
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    if found.hexdigest() != wanted:
        raise SystemExit(f"carry: {folder}: the parts are not what was packed (checksum {found.hexdigest()[:12]})")
    to.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=Joined(paths), mode="r|") as archive:
        archive.extractall(to, filter="data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("pack", help="cut a file or folder into parts")
    made.add_argument("what", type=Path)
    made.add_argument("folder", type=Path, help="of the parts; empty or new")
    made.add_argument("--size", type=float, default=30, help="of a part, in MiB (default 30)")
    made = commands.add_parser("unpack", help="join parts, and check them")
    made.add_argument("folder", type=Path, help="of the parts")
    made.add_argument("to", type=Path, help="the folder that what was packed is put into")
    given = parser.parse_args()
    if given.command == "pack":
        print(f"{given.folder}: {pack(given.what, given.folder, given.size)} parts")
    else:
        unpack(given.folder, given.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
