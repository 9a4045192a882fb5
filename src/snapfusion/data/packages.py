"""Pinned npm packages: fetched once by the npm client, checked against their SHA-256, read without unpacking."""

import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One version of one npm package, named by content."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """What `npm pack` calls the archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


EMOJIBASE = Package(
    "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT"
)
CLDR = Package(
    "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1", "Unicode-3.0"
)


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's archive in `cache`, downloaded by `npm pack` if it is not there yet.

    Raises:
        ValueError: npm is missing or fails, or the archive is not the pinned one.
    """
    archive = cache / package.filename
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(
                f"got no npm on the PATH, expected it to fetch {package.name}@{package.version}; "
                f"install Node.js (for example `apt-get install npm`) or put {package.filename} into {cache}"
            )
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}", "--pack-destination", str(cache)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise ValueError(
                f"got no {package.name}@{package.version} from npm ({reason}); check the network, or put "
                f"{package.filename} into {cache}"
            )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(
            f"got SHA-256 {digest} for {archive}, expected {package.sha256}; delete the file and run again"
        )
    return archive


def read(archive: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """The archive's files whose names end in one of `suffixes`: path below `package/` -> bytes."""
    files: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(suffixes):
                handle = tar.extractfile(member)
                assert handle is not None
                files[member.name.partition("/")[2]] = handle.read()
    return files
