"""Errors say what is wrong, what was given, and what would work."""

import pytest

from vap_gym.errors import MissingDependencyError, UnknownNameError, VapError, require, unknown_name


def test_near_name_is_suggested_and_all_are_listed() -> None:
    error = unknown_name("robot", "two_fingers", ["two_finger", "panda_robotiq"])
    assert isinstance(error, UnknownNameError)
    assert str(error) == ("No robot named 'two_fingers'. Did you mean 'two_finger'? Known: panda_robotiq, two_finger.")


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert str(unknown_name("env", "zzz", ["VAP-DROID-v0"])) == "No env named 'zzz'. Known: VAP-DROID-v0."
    assert str(unknown_name("env", "zzz", [])) == "No env named 'zzz'. Known: none."


def test_missing_package_is_named_with_its_pip_line() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package_of_ours", "[rl]", "The TorchRL wrapper")
    assert str(caught.value) == (
        "The TorchRL wrapper needs the package 'no_such_package_of_ours', which is not installed. "
        "Run: pip install 'vap-gym[rl]'"
    )
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, VapError)
    with pytest.raises(MissingDependencyError, match="Run: pip install some-wheel"):
        require("no_such_package_of_ours.inner", "some-wheel", "This")


def test_installed_package_is_returned() -> None:
    assert require("json.decoder", "json", "This").__name__ == "json.decoder"
