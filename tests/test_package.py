"""What importing the package promises: the optimizer by name, and torch only where it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import coupled_adam


@pytest.mark.parametrize("part", ["", ".theory", ".figures", ".files", ".arms", ".palette"])
def test_torch_is_imported_only_where_it_is_used(part):
    code = f"import sys, coupled_adam{part}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_optimizer_is_there_by_name():
    from coupled_adam import CoupledAdamW, optim, param_groups, transfer_state

    assert CoupledAdamW is optim.CoupledAdamW is coupled_adam.CoupledAdamW
    assert (param_groups, transfer_state) == (optim.param_groups, optim.transfer_state)
    assert {*coupled_adam.__all__, "__version__"} <= set(dir(coupled_adam))
    names: dict = {}
    exec("from coupled_adam import *", names)
    assert names["CoupledAdamW"] is CoupledAdamW


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'coupled_adam' has no attribute 'AdamW'"):
        coupled_adam.AdamW  # noqa: B018
    assert not hasattr(coupled_adam, "AdamW")
