"""The command itself: help, versions, errors, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import topv as package
from topv.cli import main as main_module
from topv.cli.main import COMMANDS
from topv.methods import METHODS


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom topv.cli.main import main\n"
        "try:\n    main([{}])\nexcept SystemExit as leaving:\n    code = leaving.code\n"
        "heavy = {{'torch', 'transformers', 'numpy', 'PIL', 'rich'}} & set(sys.modules)\n"
        "sys.exit(f'imported {{heavy}}' if heavy else code)"
    )
    for arguments in ("'--help'", "'compare', '--help'", "'generate', '--keep', 'x'"):
        done = subprocess.run([sys.executable, "-c", program.format(arguments)], capture_output=True, text=True)
        assert done.returncode == (2 if "generate" in arguments else 0), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(topv, command):
    code, out, _ = topv(command, "--help")
    assert code == 0
    assert "--debug" in out
    assert "examples:" in out or command == "env"


def test_help_lists_commands_and_methods(topv):
    code, out, _ = topv("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert all(f"\n  {method} " in out for method in ("none", *METHODS))
    _, out, _ = topv("compare", "--help")
    assert all(f" {method}" in out.split("methods:")[-1] for method in ("none", *METHODS))


def test_version(topv):
    assert topv("--version") == (0, f"topv {package.__version__}\n", "")


def test_no_or_unknown_command(topv):
    assert topv()[0] == 2
    code, _, err = topv("compar")
    assert code == 2
    assert "compare" in err


def fail_with(error):
    def run(args):
        raise error

    return lambda command: SimpleNamespace(run=run)


def test_an_error_is_one_line_without_traceback(topv, monkeypatch):
    real = main_module._module

    def module(command):
        found = real(command)
        return SimpleNamespace(
            add_arguments=found.add_arguments, run=fail_with(ValueError("too green"))(command).run, __doc__=""
        )

    monkeypatch.setattr(main_module, "_module", module)
    assert topv("env") == (2, "", "topv env: error: too green\n")
    with pytest.raises(ValueError, match="too green"):
        main_module.main(["env", "--debug"])


def test_interrupt(topv, monkeypatch):
    real = main_module._module

    def module(command):
        return SimpleNamespace(
            add_arguments=real(command).add_arguments, run=fail_with(KeyboardInterrupt())(command).run, __doc__=""
        )

    monkeypatch.setattr(main_module, "_module", module)
    assert topv("env")[0] == 130
