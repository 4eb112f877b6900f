"""`aiaas audit` over an archive, as a person types it: output and exit codes."""

from __future__ import annotations

import json

import pytest

from services.cli.__main__ import main
from shared.events import ModelPromoted
from support.archived import archived
from support.facts import made_ready, uploaded


@pytest.fixture
def made(tmp_path, monkeypatch):
    made = archived(tmp_path, 8)
    for event in (uploaded(), *made_ready(), ModelPromoted(model="m", version=1)):
        made.add_event(event, 1_764_000_000_000)
    made.write()
    monkeypatch.setenv("AIAAS_ARTIFACT_STORE_URL", made.settings.artifact_store_url)
    monkeypatch.setenv("AIAAS_TOPIC_PREFIX", made.settings.topic_prefix)
    monkeypatch.setenv("AIAAS_DATA_DIR", str(tmp_path / "nothing-runs-here"))
    monkeypatch.setenv("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    return made


@pytest.fixture
def aiaas(capsys):
    def run(*arguments):
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_verify(made, aiaas, tmp_path):
    code, out, _ = aiaas("audit", "verify", "--source", "archive", "--json")
    assert (code, json.loads(out)["first_broken"]) == (0, None)
    key = made.signer.public_key
    code, out, _ = aiaas("audit", "verify", "--source", "archive", "--public-key", key)
    assert (code, "everything holds" in out) == (0, True)
    code, out, _ = aiaas("audit", "checkpoints")
    (tmp_path / "kept").write_text(out)
    assert code == 0
    assert aiaas("audit", "verify", "--source", "archive", "--checkpoint", str(tmp_path / "kept"))[0] == 0

    [file, *_] = (tmp_path / "store").rglob("exchanges/**/*.parquet")
    file.unlink()
    code, out, _ = aiaas("audit", "verify", "--source", "archive", "--json")
    assert code == 1
    assert json.loads(out)["first_broken"]["link"] == "file"
    code, out, _ = aiaas("audit", "verify", "--source", "archive")
    assert (code, "broken file" in out) == (1, True)


def test_what_can_not_be_tried_is_2(made, aiaas):
    assert made
    code, _, err = aiaas("audit", "verify", "--source", "elsewhere")
    assert (code, "kafka, archive or both" in err) == (2, True)
    code, _, err = aiaas("audit", "verify", "--public-key", "no key")
    assert (code, "--public-key" in err) == (2, True)
    code, _, err = aiaas("audit", "erase", "--model", "m")
    assert (code, "--tenant" in err) == (2, True)


@pytest.mark.usefixtures("made")
def test_explain_export_and_erase(aiaas, tmp_path):
    code, out, _ = aiaas("audit", "explain", "--request", "r3", "--source", "archive", "--json")
    [found] = json.loads(out)
    assert (code, found["request"]["offset"], found["model"]) == (0, 3, "m")
    code, out, _ = aiaas("audit", "explain", "--request", "r3", "--source", "archive")
    assert (code, "why: " in out) == (0, True)
    code, _, err = aiaas("audit", "explain", "--request", "nobody's", "--source", "archive")
    assert (code, "nobody's" in err) == (1, True)

    code, out, _ = aiaas("audit", "export", "--model", "m", "--out", str(tmp_path / "b.zip"), "--json")
    assert (code, json.loads(out)["requests"]) == (0, 8)
    assert aiaas("audit", "export", "--model", "m", "--out", str(tmp_path / "b.zip"))[0] == 2

    code, out, _ = aiaas("audit", "erase", "--model", "m", "--request", "r3", "--json")
    assert (code, json.loads(out)) == (0, {"erased": 1})
    code, out, _ = aiaas("audit", "verify", "--source", "archive", "--json")
    assert (code, json.loads(out)["counts"]["requests_erased"]) == (0, 1)


def test_audit_without_its_packages_says_which_extra(made, aiaas, monkeypatch):
    def missing(_name):
        raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

    assert made
    monkeypatch.setattr("services.cli.audit.importlib.import_module", missing)
    code, _, err = aiaas("audit", "verify")
    assert (code, "aiaas[audit]" in err) == (2, True)
