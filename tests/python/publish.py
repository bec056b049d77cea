"""Publishes events at a node with plain NATS, as any program in any language can.

Usage: publish.py NATS_URL NODE_ID

Prints one JSON object: the events in the order in which they were published, each with its subject, its bytes in
base64 and its headers, so that whoever started this can hold what arrives against them.
"""

import asyncio
import base64
import json
import sys

import nats


def events(node):
    own = f"lucent.hierarchy.node.{node}"
    yield own, b'{"pair":"ETH-USDC","price":2847.52,"volume":12.5}', None
    yield f"{own}.trades", b'{"spacing": [1,  2,\t3], "last": 9007199254740993}', None
    yield f"{own}.trades.eth.usdc", '{"note":"naïve – ✓","escaped":"\\u00e9\\n"}'.encode(), None
    yield f"{own}.raw", bytes(range(256)), None
    yield f"{own}.raw", b"plain text, no JSON", None
    yield f"{own}.raw", b"", None
    yield f"{own}.raw", b' {"white space": "around it"} \n', None
    yield f"{own}.raw", b'{"twice":1,"twice":2}', None
    yield f"{own}.raw", b"null", None
    yield f"{own}.headed", b'{"with":"headers"}', {"Trace-Id": "4bf92f35", "Content-Type": "application/json"}


async def main(url, node):
    published = []

    def note(subject, data, headers):
        data = base64.b64encode(data).decode()
        published.append({"subject": subject, "data": data, "headers": headers or {}})

    connection = await nats.connect(url)
    for subject, data, headers in events(node):
        await connection.publish(subject, data, headers=headers)
        note(subject, data, headers)
    await connection.flush()

    jetstream = connection.jetstream()
    for subject, data, headers in events(node):
        ack = await jetstream.publish(subject, data, headers=headers)
        assert ack.stream == "HIERARCHY", ack
        note(subject, data, headers)
    await connection.close()
    json.dump(published, sys.stdout)


asyncio.run(main(*sys.argv[1:]))
