"""Where the text of a corpus comes from: a folder, a tar archive, or an address. Not a command."""

import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from parallel_text import CorpusError, say


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Write the regular files of a tar archive below `folder`; links and devices are left out, unsafe names refused.

    `wanted` is told each file's name without its folders, and whether it is written.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise CorpusError(f"{archive}: member {member.name!r} would be written outside the folder; refused")
                if member.isfile() and wanted(name.name):
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as packed, target.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise CorpusError(f"{archive} is not a whole tar archive ({error}); get it again") from error


def download(url: str, cache: Path) -> Path:
    """The archive at an address, in the folder `cache`; it keeps its name only when it arrived whole."""
    name = PurePosixPath(urllib.request.url2pathname(url)).name or "archive.tgz"
    archive = cache / name
    advice = f"get {name} in another way and give it with --from"
    if archive.is_file():
        return archive
    say(f"downloading {url} ...")
    incoming = archive.with_name(f"{archive.name}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, incoming.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, OSError, ValueError) as error:
        incoming.unlink(missing_ok=True)
        raise CorpusError(f"cannot download {url} ({error}); {advice}") from error
    size = incoming.stat().st_size
    if size == 0 or not tarfile.is_tarfile(incoming):
        incoming.unlink()
        raise CorpusError(f"the answer of {url} is {size:,} bytes and not a tar archive; {advice}")
    return incoming.replace(archive)


@contextmanager
def cache_folder(cache: Path | None) -> Iterator[Path]:
    """The folder for downloads: `--cache`, made and kept, or else a temporary one that vanishes at the end."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
    else:
        with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
            yield Path(folder)
