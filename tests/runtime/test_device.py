import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import numpy as np

from edgekit.runtime.device import describe, package_versions


def test_a_machine_is_described_in_plain_data() -> None:
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("machine", "cpu", "cores", "memory_bytes", "system", "python", "packages")
    }


def test_a_machine_is_described_as_it_is() -> None:
    found = describe()
    assert found["machine"] == platform.machine()
    assert found["python"] == platform.python_version()
    assert found["memory_bytes"] > 2**26
    assert found["cpu"].strip() == found["cpu"] != ""
    assert found["packages"]["numpy"] == np.__version__


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert describe()["cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert describe()["cores"] == len(allowed)


def test_a_package_that_is_not_installed_is_left_out() -> None:
    assert package_versions(("numpy", "no-such-package-edgekit")) == {
        "numpy": importlib.metadata.version("numpy")
    }


def test_describing_a_machine_imports_no_engine() -> None:
    program = (
        "import sys\n"
        "from edgekit.runtime.device import describe\n"
        "assert 'onnxruntime' in describe()['packages']\n"
        "sys.exit('onnxruntime' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
