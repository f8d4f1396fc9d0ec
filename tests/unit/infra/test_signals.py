from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from burnish.infra import signals

MISSION = {
    "platform_requests_total": "counter",
    "platform_request_duration_seconds": "histogram",
    "platform_memory_usage_bytes": "gauge",
    "platform_active_training_jobs": "gauge",
}


def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(signals.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_missions_metrics_are_declared_and_exported() -> None:
    exported = signals.render().decode()
    for name, kind in MISSION.items():
        assert signals.CATALOGUE[name].type == kind
        assert f"# TYPE {name} {kind}\n" in exported


def test_nothing_is_exported_that_is_not_declared() -> None:
    exported = {
        line.split()[2]: line.split()[3] for line in signals.render().decode().splitlines() if line[:6] == "# TYPE"
    }
    assert exported == {name: signal.type for name, signal in signals.CATALOGUE.items()}
    assert all(signal.help for signal in signals.CATALOGUE.values())
    assert all(name.startswith("platform_") for name in exported)


def test_this_process_is_measured_when_read(tmp_path: Path) -> None:
    signals.watch_disk("test", tmp_path / "not there yet")
    before = samples()
    memory = before["platform_memory_usage_bytes", ()]
    assert 0.5 < memory / psutil.Process().memory_info().rss < 2
    assert before["platform_disk_free_bytes", (("what", "test"),)] > 0
    assert before["platform_cpu_seconds_total", ()] > 0
    ballast = b"x" * (64 << 20)
    after = samples()
    assert after["platform_memory_usage_bytes", ()] > memory + len(ballast) // 2
    assert after["platform_cpu_seconds_total", ()] >= before["platform_cpu_seconds_total", ()]


def test_counts_by_state_fall_back_to_zero() -> None:
    key = "platform_executions"
    signals.set_counts(signals.EXECUTIONS, {"running": 2}, ["running", "failed"])
    assert samples()[key, (("state", "running"),)] == 2
    signals.set_counts(signals.EXECUTIONS, {"failed": 1}, ["running", "failed"])
    found = samples()
    assert (found[key, (("state", "running"),)], found[key, (("state", "failed"),)]) == (0, 1)


def test_a_name_is_declared_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        signals._counter("platform_requests_total", "again")
