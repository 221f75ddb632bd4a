"""The hash of the code changes with what it does, and with nothing else."""

import pytest

from redlib.errors import RedlibError
from redlib.fingerprint import code_version


def test_code_version_sees_code_and_not_prose(tmp_path):
    module = tmp_path / "m.py"
    module.write_text('"""One."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    before = code_version(["m"], package=tmp_path)
    module.write_text('"""Two."""\n\n\ndef f(x):  # why\n    return x + 1\n')
    assert code_version(["m"], package=tmp_path) == before
    module.write_text("def f(x):\n    return x + 2\n")
    assert code_version(["m"], package=tmp_path) != before
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("x = 1\n")
    assert code_version(["p"], package=tmp_path) != code_version(package=tmp_path)
    with pytest.raises(RedlibError, match="no module 'q'"):
        code_version(["q"], package=tmp_path)
