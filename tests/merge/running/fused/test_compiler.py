"""Libraries are built once, kept where nobody else may write, and done without where there is no compiler."""

from pathlib import Path

import pytest

from merge.running.fused import compiler


@pytest.fixture
def own_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> compiler.Compiler:
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    return compiler.Compiler()


C_TEXT = "int run(void) { return 7; }"


def test_a_library_is_built_once_and_found_again(own_compiler: compiler.Compiler, tmp_path: Path) -> None:
    first = own_compiler.build(C_TEXT)
    assert first is not None, own_compiler.reason
    (file,) = (tmp_path / "kernels").iterdir()
    written = file.stat().st_mtime_ns
    again = compiler.Compiler().build(C_TEXT)
    assert again is not None
    assert file.stat().st_mtime_ns == written
    assert (tmp_path / "kernels").stat().st_mode & 0o077 == 0


def test_text_that_does_not_compile_is_told(own_compiler: compiler.Compiler) -> None:
    assert own_compiler.build("int run(void) { return") is None
    assert "error" in own_compiler.reason


def test_a_folder_that_others_may_write_to_is_not_trusted(
    own_compiler: compiler.Compiler, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir(mode=0o700)
    (tmp_path / "kernels").chmod(0o777)
    assert own_compiler.build(C_TEXT) is None
    assert "others" in own_compiler.reason


def test_no_compiler_and_no_wish_for_one_are_reasons(
    own_compiler: compiler.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_compiler", lambda: None)
    assert own_compiler.build(C_TEXT) is None
    assert own_compiler.reason == "no C compiler was found"
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, "off")
    assert compiler.Compiler().build(C_TEXT) is None
