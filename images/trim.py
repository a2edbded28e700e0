"""In the build of an image: takes out what no process of ours loads.

    python trim.py FOLDER     of installed packages
    python trim.py --base     pip and its kind, of the Python that runs this

Of the official Kubernetes client, 72 of 75 MB are its typed API and the models of that: our own client sends and reads plain
JSON. What importing the client loads of them stays.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

GENERATED = ("client/api", "client/models", "aio/client/api", "aio/client/models")
CLIENT_USERS = ("kubernetes.aio.dynamic", "kubernetes.aio.config.kube_config", "kopf")
"""Whatever they load of the client is kept. One that is not installed is passed over."""
DEVELOPERS_FOLDERS = ("tests", "sample_data", "f2py")
DEVELOPERS_FILES = ("*.pyi", "*.pyx", "*.pxd", "*.h", "*.c", "*.a", "*_tests.*.so")
INSTALLERS = (
    "pip",
    "pip-*",
    "setuptools",
    "setuptools-*",
    "pkg_resources",
    "_distutils_hack",
    "distutils-precedence.pth",
    "wheel",
    "wheel-*",
)
INSTALLERS_OF_PYTHON = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "test", "tkinter")
PROGRAMS = ("pip*", "idle*", "pydoc*", "2to3*", "wheel*")


def packages(folder: Path) -> None:
    loaded = _loaded(folder)
    for part in GENERATED:
        for file in (folder / "kubernetes" / part).glob("*.py"):
            module = ".".join(file.relative_to(folder).with_suffix("").parts)
            if file.stem != "__init__" and module not in loaded:
                file.unlink()
    for name in DEVELOPERS_FOLDERS:
        for found in sorted(folder.rglob(name)):
            if found.is_dir():
                shutil.rmtree(found)
    for name in DEVELOPERS_FILES:
        for file in folder.rglob(name):
            file.unlink()
    shutil.rmtree(folder / "bin", ignore_errors=True)  # programs that name the Python that installed them


def _loaded(folder: Path) -> set[str]:
    """The client's modules that imports alone load."""
    say = (
        "import sys; from importlib.util import find_spec; from importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "  if find_spec(name.partition('.')[0]): import_module(name)\n"
        "print(*(name for name in sys.modules if name.startswith('kubernetes.')))"
    )
    command = [sys.executable, "-B", "-c", say, *CLIENT_USERS]
    run = subprocess.run(command, env={"PYTHONPATH": str(folder), "HOME": "/"}, stdout=subprocess.PIPE, text=True, check=True)
    return set(run.stdout.split())


def base() -> None:
    sites = {Path(path) for path in sys.path if path.endswith("-packages")}
    for folder, names in [*((site, INSTALLERS) for site in sites), (Path(sysconfig.get_path("stdlib")), INSTALLERS_OF_PYTHON),
                          (Path(sysconfig.get_path("scripts")), PROGRAMS)]:  # fmt: skip
        for name in names:
            for found in folder.glob(name):
                shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
    Path(__file__).unlink()


if __name__ == "__main__":
    if sys.argv[1] == "--base":
        base()
    else:
        packages(Path(sys.argv[1]))
