import sys
from importlib import import_module

import pytest

from avalanche_cetl.common.lazy import attach_stub

STUB = """
from lazy_house.kitchen import Oven, Table
from lazy_house.attic.box import Letter

__all__ = ["Letter", "Oven"]
"""
INIT = """
from avalanche_cetl.common.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package whose stub names two modules."""
    files = {
        "__init__.py": INIT,
        "__init__.pyi": STUB,
        "kitchen.py": "class Oven: pass\nclass Table: pass\n",
        "attic/__init__.py": "",
        "attic/box.py": "class Letter: pass\n",
        "cellar.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "lazy_house" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("lazy_house")
    for name in [name for name in sys.modules if name.split(".")[0] == "lazy_house"]:
        del sys.modules[name]


def imported():
    return {name for name in sys.modules if name.startswith("lazy_house.")}


def test_a_name_is_imported_when_it_is_read_and_no_other(house):
    assert imported() == set()
    oven = house.Oven
    assert oven.__module__ == "lazy_house.kitchen"
    assert imported() == {"lazy_house.kitchen"}


def test_a_name_that_was_read_is_kept(house):
    assert "Letter" not in vars(house)
    letter = house.Letter
    assert vars(house)["Letter"] is letter


def test_modules_of_the_stub_are_attributes_and_others_are_not(house):
    assert house.kitchen.Oven is house.Oven
    assert house.attic is sys.modules["lazy_house.attic"]
    with pytest.raises(AttributeError, match="module 'lazy_house' has no attribute 'cellar'"):
        house.cellar  # noqa: B018
    from lazy_house import cellar

    assert house.cellar is cellar


def test_dir_shows_what_has_not_been_read_and_imports_nothing(house):
    assert {"Oven", "Table", "Letter", "kitchen", "attic", "__name__"} <= set(dir(house))
    assert imported() == set()


def test_a_star_imports_what_all_names(house):
    names = {}
    exec("from lazy_house import *", names)
    assert names.keys() - {"__builtins__"} == {"Letter", "Oven"}
    assert house.__all__ == ["Letter", "Oven"]


def test_an_error_in_a_module_is_not_taken_for_a_missing_name(house, tmp_path):
    (tmp_path / "lazy_house" / "kitchen.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        house.Oven  # noqa: B018


def test_a_package_without_a_stub_is_refused(house):
    with pytest.raises(FileNotFoundError):
        attach_stub("lazy_house.attic")
