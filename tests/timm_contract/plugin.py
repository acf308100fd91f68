"""pytest plugin that points timm's ``tests/test_models.py`` at this package's models.

    python -m pytest -p timm_contract.plugin <timm>/tests/test_models.py

That file asks ``timm.list_models`` for names while it is imported, and then runs timm's own models as
well. So this plugin, imported first,

- registers this package's models and hides all others from ``timm.list_models`` and ``list_pretrained``;
- ignores the lists of timm's modules that some tests are limited to, as no outside package is on them;
- leaves out the tests of models that the file names itself: those are timm's.

``LAMBDARESNET_ZOO_CONTRACT_MODELS`` (names, comma separated) picks models; unset, all of them run.
"""

import os
from collections.abc import Iterable
from typing import Any

import pytest
import timm

import lambdaresnet_zoo

VARIABLE = "LAMBDARESNET_ZOO_CONTRACT_MODELS"

_timm_list_models = timm.list_models


def _selected() -> frozenset[str]:
    own = frozenset(lambdaresnet_zoo.list_models())
    names = frozenset(name for name in os.environ.get(VARIABLE, "").split(",") if name) or own
    if not names <= own:
        raise pytest.UsageError(f"{VARIABLE} names models this package does not have: {sorted(names - own)}")
    return names


MODELS = _selected()


def _is_selected(name: Any) -> bool:
    return isinstance(name, str) and name.split(".")[0] in MODELS


def _list_models(filter: str | Iterable[str] = "", module: str | Iterable[str] = "", **kwargs: Any) -> list[str]:
    # One module, by name, is a question; a list of them is timm's list of models known to do something.
    if not isinstance(module, str):
        module = ""
    return [name for name in _timm_list_models(filter, module, **kwargs) if _is_selected(name)]


def _list_pretrained(filter: str | Iterable[str] = "", exclude_filters: str | Iterable[str] = "") -> list[str]:
    return _list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


timm.list_models = _list_models
timm.list_pretrained = _list_pretrained


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the selected models."""
    kept, left = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("model_name") if callspec is not None else None
        (kept if _is_selected(name) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
