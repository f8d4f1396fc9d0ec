"""A name server on a UDP port of 127.0.0.1 that answers from a table which tests change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass
class NameServer:
    """Records by ``(name, type)``; ``mute`` answers nothing, ``failing`` answers SERVFAIL."""

    port: int = 0
    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    ttl: int = 1
    mute: bool = False
    failing: bool = False
    asked: int = 0

    def answer(self, wire: bytes) -> bytes | None:
        query = dns.message.from_wire(wire)
        self.asked += 1
        if self.mute:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        question = query.question[0]
        name, kind = str(question.name).rstrip("."), dns.rdatatype.to_text(question.rdtype)
        found = self.records.get((name, kind))
        if self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif found:
            response.answer.append(dns.rrset.from_text_list(question.name, self.ttl, "IN", kind, found))
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Run one."""
    server = NameServer()

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if (answer := server.answer(data)) is not None:
                transport.sendto(answer, addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    server.port = transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        transport.close()
