"""Which instance gets a call."""

import pytest

from burnish.core.errors import Forbidden, InvalidRequest, Unavailable
from burnish.core.protocol import Description
from burnish.core.states import InstanceState
from burnish.platform.integrator.balancing import order
from burnish.platform.integrator.identity import InstanceNumber, embedded_id
from burnish.platform.integrator.network import check_endpoint
from burnish.platform.integrator.schemas import Instance


def instance(component_id: str, status: InstanceState = InstanceState.HEALTHY, load: float = 0.0, described: bool = True) -> Instance:  # fmt: skip
    description = Description(component_type="evaluation", version="1") if described else None
    return Instance(
        component_id=component_id, component_type="evaluation", api_endpoint="http://x", status=status,
        description=description, load=load,
    )  # fmt: skip


def ids(found: list[Instance]) -> list[str]:
    return [one.component_id for one in found]


def test_only_described_and_living_instances_are_called_healthy_first() -> None:
    every = [instance(f"i-{state}", state) for state in InstanceState] + [instance("undescribed", described=False)]
    assert ids(order(every, {}, set())) == ["i-healthy", "i-degraded"]


def test_embedded_first_then_the_least_busy() -> None:
    found = [instance("a", load=0.5), instance("b"), instance("c"), instance("own", load=9)]
    assert ids(order(found, {"b": 2, "c": 1}, {"own"})) == ["own", "a", "c", "b"]


def test_what_just_failed_comes_last() -> None:
    assert ids(order([instance("a"), instance("b", load=5)], {}, set(), {"a"})) == ["b", "a"]


async def test_endpoints_lead_to_hosts_and_not_to_cloud_metadata() -> None:
    await check_endpoint("http://127.0.0.1:9000/base", "api_endpoint")
    await check_endpoint("https://[::1]:9000", "api_endpoint")
    for wrong in (
        "ftp://127.0.0.1",
        "http://",
        "http://user:pw@127.0.0.1",
        "file:///etc/passwd",
        "http://127.0.0.1:99999",
    ):
        with pytest.raises(InvalidRequest) as refused:
            await check_endpoint(wrong, "api_endpoint")
        assert refused.value.where == "api_endpoint"
    for forbidden in ("http://169.254.169.254/latest", "http://0.0.0.0:80", "http://224.0.0.1", "http://[fe80::1]"):
        with pytest.raises(Forbidden):
            await check_endpoint(forbidden, "api_endpoint")
    with pytest.raises(Unavailable):
        await check_endpoint("http://no.such.host.invalid", "api_endpoint")


def test_a_number_is_kept_for_the_process_and_free_after_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    first, second = InstanceNumber(folder), InstanceNumber(folder)
    assert (first.number, second.number) == (1, 2)
    first.release()
    assert InstanceNumber(folder).number == 1
    assert embedded_id("evaluation", "my host/1", 3) == "evaluation-my-host-1-3"
