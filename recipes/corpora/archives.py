"""Where the text of a corpus comes from: a folder, a tar archive, or an address. Not a command."""

import http.client
import lzma
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from parallel_text import CorpusError, say

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError)
BLOCK = 1 << 20


@contextmanager
def whole(archive: Path, kind: str) -> Iterator[None]:
    """Refuse an archive in whose reading damage shows; a full disk and the like is not the archive's fault."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile names each compression that it tried on a line
        raise CorpusError(f"{archive} is not a whole {kind} archive ({reason}); delete it and get it again") from error


@contextmanager
def opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive for reading. What follows its members is read as well: only there the checksum is compared."""
    with whole(archive, "tar"), tarfile.open(archive) as tar:
        yield tar
        while tar.fileobj.read(BLOCK):
            pass


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Write the regular files of a tar archive below `folder`; links and devices are left out, unsafe names refused.

    `wanted` is told each file's name without its folders, and whether it is written.
    """
    with opened(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise CorpusError(f"{archive}: member {member.name!r} would be written outside the folder; refused")
            if member.isfile() and wanted(name.name):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)


def is_whole(archive: Path) -> bool:
    """Whether a tar archive can be read from its beginning to its end."""
    try:
        with opened(archive) as tar:
            for _ in tar:
                pass
    except CorpusError:
        return False
    return True


def download(url: str, cache: Path) -> Path:
    """The archive at an address, in the folder `cache`; it gets its name there only when it has arrived whole."""
    name = PurePosixPath(urllib.request.url2pathname(url)).name or "archive.tgz"
    archive = cache / name
    advice = f"start again, or get {name} in another way and give it with --from"
    if archive.is_file():
        return archive
    say(f"downloading {url} ...")
    incoming = archive.with_name(f"{archive.name}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, incoming.open("wb") as file:
            shutil.copyfileobj(answer, file)
            promised = int(answer.headers.get("Content-Length", file.tell()))  # urllib takes a shorter answer for whole
        size = incoming.stat().st_size
        if size != promised:
            raise CorpusError(f"{url} broke off after {size:,} of {promised:,} bytes; {advice}")
        if not is_whole(incoming):
            raise CorpusError(f"the answer of {url} is {size:,} bytes and not a whole tar archive; {advice}")
        return incoming.replace(archive)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise CorpusError(f"cannot download {url} ({error}); {advice}") from error
    finally:
        incoming.unlink(missing_ok=True)


@contextmanager
def cache_folder(cache: Path | None) -> Iterator[Path]:
    """The folder for downloads: `--cache`, made and kept, or else a temporary one that vanishes at the end."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
    else:
        with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
            yield Path(folder)
