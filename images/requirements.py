"""In the build of an image: writes <extra>.txt for each extra of pyproject.toml, and build.txt, what builds the wheel.

Extras that an extra names are left to pip, which knows them only with the sources: none of an image's has any.
"""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
wanted = {"build": project["build-system"]["requires"], **project["project"]["optional-dependencies"]}
for name, lines in wanted.items():
    Path(f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
