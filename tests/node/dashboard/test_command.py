"""`locum-node dashboard` and `person` as commands: what they print, what they refuse, and how they end."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from node.cli import app
from pages.credentials import PEOPLE_FILE, TOKEN_FILE, People

ROOT = Path(__file__).parents[3]


@contextmanager
def shown(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the line that it prints."""
    command = [sys.executable, "-m", "node", "dashboard", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_it_says_where_it_is_and_keeps_the_token_to_itself(lived_in: Path) -> None:
    with shown("--home", str(lived_in)) as (process, line):
        token = (lived_in / TOKEN_FILE).read_text().strip()
        address = line.split(" is at ")[1].split(" ")[0]
        assert line == f"The dashboard of north is at {address} and wants the token in {lived_in / TOKEN_FILE}.\n"
        headers = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{address}api/now").status_code == 401
        for path in ("", "crossed", "api/ledger", "api/now"):
            assert httpx.get(address + path, headers=headers, timeout=100).status_code == 200
        libraries = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libpython" in libraries or "python" in libraries
        assert "libtorch" not in libraries
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.read() + process.stderr.read()
        assert token not in said
        assert said == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--home", "nowhere"], "nowhere: there is no such folder"),
        (["--home", "."], "this is no node's folder"),
        (["--home", "HOME", "--host", "0.0.0.0"], "give --certificate and --key, or --no-tls"),
        (["--home", "HOME", "--host", "0.0.0.0", "--no-tls", "--no-token"], "only loopback may go without"),
        (["--home", "HOME", "--certificate", "none.pem"], "give both"),
        (["--home", "HOME", "--host", "192.0.2.1", "--no-tls"], "cannot be listened at"),
    ],
)
def test_what_it_refuses_in_one_sentence(
    arguments: list[str], said: str, lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(lived_in) if word == "HOME" else word for word in arguments]
    done = CliRunner().invoke(app, ["dashboard", "--port", "0", *given])
    assert done.exit_code == 2
    assert done.stderr.startswith("locum-node: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "node.key").touch()
    (tmp_path / TOKEN_FILE).write_text("t" * 43)
    (tmp_path / TOKEN_FILE).chmod(0o644)
    done = CliRunner().invoke(app, ["dashboard", "--port", "0", "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert "others than its owner may read it" in done.stderr


def test_a_person_gets_a_password_and_loses_it(tmp_path: Path) -> None:
    run = CliRunner()
    home = ["--home", str(tmp_path)]
    assert run.invoke(app, ["person", "Dr. Roe", *home], input="correct horse\ncorrect horse\n").exit_code == 0
    assert People(tmp_path / PEOPLE_FILE).check("Dr. Roe", "correct horse")
    short = run.invoke(app, ["person", "Dr. Roe", *home], input="short\nshort\n")
    assert short.exit_code == 2
    assert "at least 10 characters" in short.stderr
    assert run.invoke(app, ["person", "Dr. Roe", "--remove", *home]).exit_code == 0
    again = run.invoke(app, ["person", "Dr. Roe", "--remove", *home])
    assert again.exit_code == 2
    assert "There is no 'Dr. Roe'" in again.stderr
    assert run.invoke(app, ["person", "Eve", "--home", str(tmp_path / "none")]).exit_code == 2
