"""`vitfast backends` says what runs here, why the rest does not, and what the kit says of it."""

import json

import jax.numpy as jnp
import pytest
import typer
from typer.testing import CliRunner

from vitfast import tokamax_attention
from vitfast.commands import backends as command
from vitfast.commands.backends import backends, verdict_on

app = typer.Typer()
app.command()(backends)


def run(*arguments):
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return done.exit_code, " ".join(done.output.split())


def test_every_attention_is_listed_with_why_it_does_not_run_here():
    code, output = run()
    assert code == 0
    assert "runs on this cpu" in output
    for name in ("plain", "xla", "xla_chunked"):
        assert f"│ {name} │ yes │" in output
    for name in ("mosaic", "triton", "cudnn", "mosaic_tpu"):
        assert f"│ {name} │ Not supported on cpu. │" in output


def test_what_runs_is_checked_in_each_precision(tmp_path):
    file = tmp_path / "backends.json"
    arguments = ["plain", "triton", "--check", "--precision", "bfloat16", "--json", str(file)]
    code, output = run(*arguments)
    assert code == 0
    assert "│ plain │ yes │ conforms │" in output
    assert "│ triton │ Not supported on cpu. │ │" in output
    written = json.loads(file.read_text())
    assert written["device"]["platform"] == "cpu"
    plain, triton = written["backends"]
    assert [(v["model"], v["precision"], v["verdict"]) for v in plain["verdicts"]] == [
        ("vit", "bfloat16", "conforms"),
        ("vit_cls", "bfloat16", "conforms"),
    ]
    assert triton == {"name": "triton", "refusal": "Not supported on cpu.", "verdicts": []}


def wrong(name, query, key, value, mask):
    """Without the scale, as one that runs but is another function."""
    scores = jnp.einsum("bihd,bjhd->bhij", query, key)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhij,bjhd->bihd", weights, value)


def refusing(name, query, key, value, mask):
    raise NotImplementedError("only whole tiles")


def crashing(name, query, key, value, mask):
    raise RuntimeError("out of registers")


@pytest.mark.parametrize(
    ("name", "implementation", "code", "verdict", "reason"),
    [  # a name for each, since programs are kept by name
        ("mosaic", wrong, 1, "does not conform", "error"),
        ("triton", refusing, 0, "not taken", "only whole tiles"),
        ("cudnn", crashing, 3, "could not be checked", "out of registers"),
    ],
)
def test_one_that_is_wrong_or_breaks_is_told_apart_from_one_that_refuses(
    monkeypatch, name, implementation, code, verdict, reason
):
    monkeypatch.setattr(tokamax_attention, "_tokamax", implementation)
    monkeypatch.setattr(tokamax_attention, "refusal", lambda name: None)
    monkeypatch.setattr(command, "config_of_check", lambda: None)  # the check's own, which is small
    found = verdict_on(name, "float64", "vit")
    assert (found.exit_code, found.verdict) == (code, verdict)
    assert reason in found.reason
    code_of_all, output = run(name, "--check", "--precision", "float64")
    assert code_of_all == code
    assert f"│ {name} │ yes │ {verdict} │" in output
    assert f"{name}, vit_cls in float64: {verdict}: " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flash"], "NAME flash: expected plain, mosaic, triton"),
        (["--precision", "float8"], "--precision float8: expected float64, float32"),
        (["--json", "no/such/folder.json"], "its directory does not exist"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(arguments, message):
    code, output = run(*arguments)
    assert code == 2
    assert message in output
