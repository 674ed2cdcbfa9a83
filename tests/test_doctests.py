"""The examples in docstrings, module by module."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import maskloom.flows
import maskloom.segcore
import maskloom.tasks

MODULES = [
    module.name
    for package in (maskloom.flows, maskloom.segcore, maskloom.tasks)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) > 20
