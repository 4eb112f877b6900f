"""What of the local stack needs no process: back-off, ports, the record of a stack, and sentences about failures."""

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.local import LocalStackSettings, RunningStack, child_logs, kafka_runtime, ports, record
from services.cli.local.errors import PortsTakenError, StackRunningError
from services.cli.local.ports import Ports
from services.cli.local.processes import describe_exit
from services.cli.local.supervisor import Backoff


def test_back_off_doubles_up_to_its_limit():
    backoff = Backoff(first_s=0.2, limit_s=10.0)
    assert [backoff.delay_s(deaths) for deaths in range(1, 8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]


@given(deaths=st.integers(min_value=1), first_s=st.floats(0.01, 10.0), limit_s=st.floats(0.01, 100.0))
def test_back_off_is_bounded_however_often_a_child_dies(deaths, first_s, limit_s):
    assert 0 < Backoff(first_s, limit_s).delay_s(deaths) <= limit_s


def test_having_been_ready_for_long_wipes_the_slate():
    backoff = Backoff(reset_s=30.0)
    assert backoff.deaths_in_a_row(5, ready_s=29.9) == 6
    assert backoff.deaths_in_a_row(5, ready_s=30.0) == 1


def test_two_stacks_never_claim_the_same_port():
    with Ports() as ours, Ports() as theirs:
        claimed = [stack.claim(21_000) for stack in (ours, theirs, ours, theirs)]
    assert len(set(claimed)) == 4


def test_a_claim_ends_with_its_stack():
    with Ports() as first:
        port = first.claim(21_100)
    with Ports() as second:
        assert second.claim(port) == port


def test_no_free_port_is_said(monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda _port: False)
    with Ports() as stack, pytest.raises(PortsTakenError, match="from 21200 to 21399"):
        stack.claim(21_200)


def test_a_directory_has_one_stack(tmp_path):
    with record.owned(tmp_path), pytest.raises(StackRunningError, match="AIAAS_DATA_DIR"), record.owned(tmp_path):
        pytest.fail("two stacks own one directory")


def test_a_record_is_found_while_its_process_lives(tmp_path):
    facts = {"ready": True, "kafka": "", "environment": {}, "urls": {}, "children": {}}
    with record.owned(tmp_path):
        record.write(tmp_path, facts)
        assert RunningStack.find(tmp_path).pid == os.getpid()
        assert (tmp_path / "run" / "stack.json").stat().st_mode & 0o077 == 0
    assert RunningStack.find(tmp_path) is None


def test_a_crashed_stack_is_not_found_even_if_its_process_id_is_used_again(tmp_path):
    left = RunningStack(
        pid=os.getpid(),
        pid_started=psutil.Process().create_time() - 100,
        root=tmp_path,
        ready=True,
        kafka="",
        environment={},
        urls={},
        children={},
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stack.json").write_text(left.model_dump_json())
    assert RunningStack.find(tmp_path) is None


def test_a_log_beyond_its_bound_is_moved_aside_and_goes_on(tmp_path):
    log = tmp_path / "child.log"
    descriptor = child_logs.open_for_child(log)
    os.write(descriptor, b"old\n" * 1000)
    child_logs.trim(log, limit_bytes=100)
    os.write(descriptor, b"new\n")
    os.close(descriptor)
    assert log.read_bytes() == b"new\n"
    assert log.with_suffix(".log.1").read_bytes() == b"old\n" * 1000


def test_a_tail_is_the_last_lines(tmp_path):
    log = tmp_path / "child.log"
    assert "printed nothing" in child_logs.tail(log)
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert child_logs.tail(log, lines=2) == "    line 9998\n    line 9999"


def test_exits_are_described():
    assert describe_exit(3) == "exited with 3"
    assert describe_exit(-9) == "was killed by SIGKILL"


def test_only_servers_that_are_not_given_are_started(monkeypatch):
    monkeypatch.delenv("AIAAS_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("AIAAS_REDIS_URL", "redis://elsewhere/0")
    settings = LocalStackSettings()
    assert settings.starts_kafka()
    assert not settings.starts_redis()


def test_the_pom_names_the_version_that_runs():
    assert kafka_runtime.kafka_version() == "4.3.1"
