"""Bundles for a Raspberry Pi, run there by the commands that a user has, beside this machine."""

import pytest

from tests.pi.conftest import SAMPLES, Commands, OnPi, on_host


def assert_verified_alike(pi, host):
    """The golden samples leave where they did on the host that built the bundle."""
    assert pi["on_target"], pi["other_device"]
    assert not host["on_target"]
    for name in ("bundle_id", "seal", "files", "engine"):
        assert pi[name] == host[name], name
    for name in ("samples", "limit"):
        assert pi["golden"][name] == host["golden"][name], name
    worst = pi["golden"]["max_relative_error"]
    assert worst.keys() == host["golden"]["max_relative_error"].keys()
    assert all(0 <= error <= pi["golden"]["limit"] for error in worst.values()), worst


def assert_decided_alike(pi, host, limit):
    """Every sample leaves at the same exit, with the same class and nearly the same confidence."""
    assert pi["policy"] == host["policy"]
    assert pi["predictions"]
    for there, here in zip(pi["predictions"], host["predictions"], strict=True):
        for name in ("file", "class_index", "label", "exit", "stop"):
            assert there[name] == here[name], (name, there, here)
        assert there["confidence"] == pytest.approx(here["confidence"], abs=limit), (there, here)


def test_a_pi_decides_as_the_host_does(digits: OnPi, commands: Commands, cli, tmp_path):
    (tmp_path / "pi").mkdir()
    pi = digits.documents(commands, tmp_path / "pi")
    host = on_host(cli, commands, tmp_path)
    assert_verified_alike(pi["verify"], host["verify"])
    limit = host["verify"]["golden"]["limit"]
    assert_decided_alike(pi["run"], host["run"], limit)
    assert len(pi["run"]["predictions"]) == len(SAMPLES)
    assert_measured_alike(pi["bench"], host["bench"])
    left = {one.name for one in (tmp_path / "pi").rglob("*") if one.is_file()}
    assert left == {f"{name}.json" for name in commands}, "more is left on the device"


def assert_measured_alike(pi, host):
    """A bench counts the same exits and errors; of its times here nothing can be said."""
    assert pi["on_target"], pi["other_device"]
    assert pi["device"]["cpu"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert pi["device"]["machine"] == "aarch64"
    assert pi["samples"] == host["samples"] == 4
    for name in ("bundle_id", "engine", "precision", "accuracy", "policy", "threads", "rounds"):
        assert pi[name] == host[name], name
    for name in ("plain", "whole", "full_depth"):
        assert pi[name]["accuracy"] == host[name]["accuracy"], name
    rates, here = ([(one["name"], one["rate"]) for one in x["exits"]] for x in (pi, host))
    assert rates == here


@pytest.mark.slow
def test_a_pi_decides_on_large_images_as_the_host_does(resnet18: OnPi, cli, tmp_path):
    bundle = resnet18.bundle
    golden = sorted(map(str, (bundle / "golden").glob("*.npy")))
    commands = {"verify": [str(bundle)], "run": [str(bundle), *golden]}
    (tmp_path / "pi").mkdir()
    pi = resnet18.documents(commands, tmp_path / "pi")
    host = on_host(cli, commands, tmp_path)
    assert_verified_alike(pi["verify"], host["verify"])
    assert_decided_alike(pi["run"], host["run"], host["verify"]["golden"]["limit"])
