"""What a release holds, that its versions agree, and that its licences are permissive."""

import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import modeling_implicitrec

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASE = runpy.run_path(str(ROOT / "scripts" / "check_release.py"))
LICENCES = runpy.run_path(str(ROOT / "scripts" / "check_licences.py"))
BUILD = "from setuptools import build_meta as b; print(b.build_{}(r'{}'))"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, made of a copy of what they are made of."""
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*RELEASE["wanted_files"](), "tests/test_packaging.py", "docs/index.md"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "MANIFEST.in"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-c", BUILD.format(kind, target)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    return target


def test_the_wheel_holds_the_package_with_its_templates_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert RELEASE["wheel_problems"](names) == []
    templates = ("model_card_template.md", "data_card_template.md", "report_page_template.html")
    for name in (*templates, "py.typed"):
        assert f"modeling_implicitrec/{name}" in names
        lacking = [one for one in names if not one.endswith(name)]
        assert RELEASE["wheel_problems"](lacking) == [f"modeling_implicitrec/{name} is missing"]


def test_the_sdist_holds_what_a_wheel_is_made_of_and_no_tests(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
    assert RELEASE["sdist_problems"](names) == []
    wrong = [*names, "implicitrec-0/data/log.parquet", "implicitrec-0/tests/test_x.py"]
    assert len(RELEASE["sdist_problems"](wrong)) == 2


def test_the_version_is_one():
    assert modeling_implicitrec.__version__ == PROJECT["version"]


def test_all_that_is_required_has_a_permissive_licence():
    found = LICENCES["needed"]("implicitrec", set())
    assert {"torch", "transformers", "duckdb", "pyarrow"} <= found.keys()
    assert LICENCES["problems"](found) == []


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("MIT", False),
        ("GPL-3.0-only OR MIT", False),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("MIT AND GPL-3.0-only", True),
        ("LGPL-3.0-only", True),
        ("LicenseRef-Proprietary", True),
    ],
)
def test_a_licence_that_is_copyleft_or_unknown_is_found(expression, wrong):
    assert bool(LICENCES["parts_of"](expression) - LICENCES["PERMISSIVE"]) is wrong


def test_a_list_of_parts_names_each_licence_and_nothing_that_is_not_needed():
    found = LICENCES["needed"]("implicitrec", set())
    told = [{"license": {"id": "BSD-3-Clause"}}]
    words = [{"license": {"name": "License :: OSI Approved :: Apache Software License"}}]
    parts = {"transformers": None, "datasets": words, "numpy": told, "pip": told}
    bill = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [
            {"bom-ref": f"{name}==1", "name": name} | ({"licenses": given} if given else {})
            for name, given in parts.items()
        ],
        "dependencies": [
            {"ref": "root", "dependsOn": ["numpy==1", "pip==1"]},
            {"ref": "numpy==1"},
            {"ref": "pip==1"},
        ],
    }
    made = LICENCES["completed"](bill, found)
    licences = {one["name"]: one["licenses"] for one in made["components"]}
    ours = [{"license": {"id": "Apache-2.0"}}]
    assert licences == {"transformers": ours, "datasets": ours, "numpy": told}
    assert made["dependencies"] == [
        {"ref": "root", "dependsOn": ["numpy==1"]},
        {"ref": "numpy==1", "dependsOn": []},
    ]


def test_no_licence_at_all_is_found():
    from email.message import Message

    assert LICENCES["licences"](Message()) == set()
