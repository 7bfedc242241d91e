"""The licences of all that an installation needs: `python scripts/check_licences.py`.

Walks the requirements of the installed package in the environment that runs this, and fails on a licence
that is unknown or copyleft. `--extra NAME` takes the requirements of an extra too. `--bill FILE` mends a
list of components (SBOM, CycloneDX JSON) of the same environment.
"""

import argparse
import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "implicitrec"
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-CMU",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
}
# What metadata says in words of its own.
SPDX = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "dual license": "",  # python-dateutil: Apache-2.0 and BSD-3-Clause, both in its classifiers
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
# Copyleft of single files, used as they are: nothing of this package becomes theirs.
EXCEPTIONS = {"certifi": "MPL-2.0", "tqdm": "MPL-2.0", "orjson": "MPL-2.0", "pathspec": "MPL-2.0"}
# Libraries of CUDA that Linux builds of torch bring along: proprietary, and not shipped by us.
VENDOR = re.compile(r"(nvidia|cuda)-")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(package: str, extras: set[str]) -> dict[str, Distribution]:
    """All distributions that a package needs here, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = [(package, frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(
                f"{name} is required and not installed; run this where it is"
            ) from None
        for line in found[name].requires or []:
            one = Requirement(line)
            if one.marker is None or any(
                one.marker.evaluate({"extra": extra}) for extra in wanted or {""}
            ):
                step = (canonical(one.name), frozenset(one.extras))
                waiting += [step] if step not in seen else []
                seen.add(step)
    del found[package]
    return found


def parts_of(expression: str) -> set[str]:
    """The licences that an SPDX expression joins by AND, one of each OR."""
    plain = re.sub(r"\s+WITH\s+[\w.-]+", "", expression.replace("(", "").replace(")", ""))
    parts = [re.split(r"\s+OR\s+", part) for part in re.split(r"\s+AND\s+", plain)]
    return {next((one for one in part if one in PERMISSIVE), part[0]) for part in parts}


def licences(metadata) -> set[str]:
    """SPDX names of a distribution's metadata; words that are not known stay as they are.

    An `or` is a choice: where one side is permissive, that side is taken.

    >>> sorted(licences({"License-Expression": "(MIT OR GPL-3.0-only) AND ISC"}))
    ['ISC', 'MIT']
    """
    if metadata.get("License-Expression"):
        return parts_of(metadata["License-Expression"])
    classifiers = metadata.get_all("Classifier") or []
    words = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License ::")]
    words = [word for word in words if word not in ("OSI Approved", "DFSG approved")]
    if not words:
        text = (metadata.get("License") or "").strip()
        words = [text.splitlines()[0].strip()] if text else []
    return {name for word in words for name in parts_of(SPDX.get(word.lower(), word)) if name}


def problems(found: dict[str, Distribution]) -> list[str]:
    """Distributions whose licence is neither permissive nor a named exception."""
    wrong = []
    for name, one in sorted(found.items()):
        if VENDOR.match(name):
            continue
        names = licences(one.metadata)
        rest = names - PERMISSIVE - {EXCEPTIONS.get(name, "")}
        if not names or rest:
            wrong.append(f"{name} {one.version}: {', '.join(sorted(rest)) or 'no licence named'}")
    return wrong


def completed(bill: dict, found: dict[str, Distribution]) -> dict:
    """An SBOM of what is needed alone, without pip, each component with its licences by SPDX names.

    CycloneDX leaves out what metadata says in words of its own, or repeats the words.
    """
    spdx = PERMISSIVE | set(EXCEPTIONS.values())
    needed = [one for one in bill["components"] if canonical(one["name"]) in found]
    for one in needed:
        names = sorted(licences(found[canonical(one["name"])].metadata))
        given = one.get("licenses", [])
        if not any("expression" in told or "id" in told["license"] for told in given):
            one["licenses"] = [{"license": {"id" if n in spdx else "name": n}} for n in names]
    refs = {one["bom-ref"] for one in [*needed, bill["metadata"]["component"]]}
    links = [
        {"ref": link["ref"], "dependsOn": [ref for ref in link.get("dependsOn", []) if ref in refs]}
        for link in bill["dependencies"]
        if link["ref"] in refs
    ]
    return bill | {"components": needed, "dependencies": links}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", default=[], help="with the needs of this extra")
    parser.add_argument("--bill", type=Path, help="an SBOM to complete")
    args = parser.parse_args()
    found = needed(PACKAGE, set(args.extra))
    wrong = problems(found)
    if wrong:
        raise SystemExit("licences that are unknown or copyleft:\n  " + "\n  ".join(wrong))
    if args.bill:
        bill = completed(json.loads(args.bill.read_text()), found)
        args.bill.write_text(json.dumps(bill, indent=2) + "\n")
    vendor = sum(bool(VENDOR.match(name)) for name in found)
    print(f"{len(found) - vendor} distributions, all under permissive licences or named exceptions")
    if vendor:
        print(f"and {vendor} of NVIDIA, which torch brings along on this platform")


if __name__ == "__main__":
    main()
